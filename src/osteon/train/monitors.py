"""Watchmen of a run: features that collapse and numbers that are not finite end it with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from osteon.core.errors import MonitorStop
from osteon.core.run import RunFolder
from osteon.parts.types import Loss


def effective_rank(values: Tensor) -> float:
    """How many directions are in use: exp of the entropy of singular values that were made to sum to 1.

    Args:
        values: (r,) singular values, not negative. All zero gives 0.

    Source: Roy and Vetterli 2007; RankMe (Garrido et al. 2023, eq. 1-2) applies it to features.
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


class CollapseMonitor:
    """Stops a run whose features have become (nearly) the same for every sample, or lie on one line.

    A check counts as collapsed when, for L2-normalised features of D dimensions, the mean standard deviation over the
    batch is below ``std`` times the 1/sqrt(D) of evenly spread features (SimSiam, section 4.1), or the effective rank
    of the centred features is below ``rank``; once a check was healthy, also when RankMe (features not centred) is.
    Training stops after ``patience`` such checks in a row; a run that never was healthy gets ``grace`` steps. Ranks
    are not judged where samples or dimensions are too few (under 4), and one dimension is never judged.

    Args:
        std: threshold of the standard deviation, relative to 1/sqrt(D).
        rank: threshold of the effective rank.
        patience: checks in a row.
        grace: steps before a run that was never healthy is stopped.
        every: steps between checks in :meth:`__call__`.
        rows: at most so many samples are looked at (which also bounds the rank): 128 cost about 2 ms.
    """

    def __init__(self, *, std: float = 1e-3, rank: float = 1.5, patience: int = 3, grace: int = 150, every: int = 20,
                 rows: int = 128) -> None:
        self.std, self.rank, self.patience, self.grace = std, rank, patience, grace
        self.every, self.rows = every, rows
        self._healthy = False
        self._streak = 0
        self._first = -1

    def __call__(self, features: Tensor, step: int) -> dict[str, float]:
        """:meth:`check` at every ``every``-th step, else nothing (and an empty dict)."""
        return self.check(features, step) if step % self.every == 0 else {}

    @torch.no_grad()
    def check(self, features: Tensor, step: int) -> dict[str, float]:
        """Measure features (B, D) and stop the run if they have collapsed.

        Returns:
            ``rank``: RankMe, in [1, min(B, rows, D)]; ``feature_std``: standard deviation relative to 1/sqrt(D), about
            1 when spread evenly, 0 when collapsed. Empty where nothing can be said (one sample, or numbers not finite).

        Raises:
            MonitorStop: collapsed; names values and thresholds.
        """
        x = features.detach().flatten(1)[:self.rows].cpu().double()
        samples, dim = x.shape
        if samples < 2 or not bool(torch.isfinite(x).all()):
            return {}
        z = torch.nn.functional.normalize(x, dim=1)
        spread = float(z.std(0, correction=0).mean()) * math.sqrt(dim)
        rank, centred = effective_rank(_singular(z)), effective_rank(_singular(z - z.mean(0)))
        if dim > 1:
            self._judge(step, spread, rank, centred, judge_rank=min(samples - 1, dim) >= 4)
        return {"rank": rank, "feature_std": spread}

    def _judge(self, step: int, spread: float, rank: float, centred: float, *, judge_rank: bool) -> None:
        flat = judge_rank and rank < self.rank
        collapsed = spread < self.std or (judge_rank and centred < self.rank)
        if self._first < 0:
            self._first = step
        if not collapsed and not flat:
            self._healthy, self._streak = True, 0
            return
        # A low RankMe alone proves nothing in a network that started so: its features may share a large mean.
        self._streak = self._streak + 1 if collapsed or self._healthy else 0
        if self._streak >= self.patience and (self._healthy or step - self._first >= self.grace):
            # Of the two ranks, name the one that is too low.
            value, label = (centred, "centred ") if rank >= self.rank else (rank, "")
            raise MonitorStop(
                f"The features have collapsed: relative standard deviation {spread:.2g} (threshold {self.std:g}), "
                f"{label}effective rank {value:.2f} (threshold {self.rank:g}), in {self._streak} checks in a row.",
                where=f"step {step}",
                fix="Lower the learning rate, lengthen the warm-up, use a larger batch or stronger augmentation. "
                    "--set collapse_stop=false goes on regardless.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"healthy": self._healthy, "streak": self._streak, "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._healthy, self._streak = bool(state["healthy"]), int(state["streak"])
        self._first = int(state["first"])


def _singular(z: Tensor) -> Tensor:
    """Singular values of (B, D) through the smaller Gram matrix: (min(B, D),), in double precision for small ones."""
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


class NumberMonitor:
    """Stops a run at the first loss or gradient that is NaN or infinite, naming the term or parameter at fault."""

    def check(self, loss: Loss, norm: float | Tensor, named: Iterable[tuple[str, Tensor]], step: int,
              ids: Tensor | Sequence[Any] | None = None) -> None:
        """Look at one step's numbers.

        Args:
            loss: total and parts.
            norm: joint norm of all gradients before clipping; the gradients are searched only if it is not finite.
            named: (name, parameter) pairs.
            step: step from 0.
            ids: ids or numbers of the batch's samples.

        Raises:
            MonitorStop: what, at which step, with which samples, and what to try.
        """
        terms = [loss.total.detach().reshape(-1)[0].float(), *(p.detach().float().mean() for p in loss.parts.values())]
        if math.isfinite(float(norm)) and bool(torch.isfinite(torch.stack(terms)).all()):
            return
        # The terms first: a total is only bad because one of them is.
        found = [f"the loss term '{k}' is {_word(v)}" for k, v in loss.parts.items() if not _finite(v)]
        if not _finite(loss.total):
            found.append(f"the loss is {_word(loss.total)}")
        if not found:
            found = [f"the gradient of '{n}' is {_word(p.grad)}" for n, p in named
                     if p.grad is not None and not _finite(p.grad)]
        if not found:
            found = [f"the joint norm of the gradients is {float(norm)}"]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        text = ", ".join(found[:3]) + more
        raise MonitorStop(text[0].upper() + text[1:] + ".", where=f"step {step}" + _samples(ids),
                          fix="Lower the learning rate, lengthen the warm-up, clip gradients (--set clip=1) or use "
                              "--precision 32; look at the named samples.")


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _word(value: Tensor) -> str:
    return "NaN" if bool(torch.isnan(value).any()) else "infinite"


def _samples(ids: Tensor | Sequence[Any] | None) -> str:
    if ids is None or len(ids) == 0:
        return ""
    shown = ids[:8].tolist() if isinstance(ids, Tensor) else list(ids[:8])
    more = f" and {len(ids) - len(shown)} more" if len(ids) > len(shown) else ""
    return ", samples " + ", ".join(str(i) for i in shown) + more


def check_step(monitor: NumberMonitor, loss: Loss, norm: float, named: Iterable[tuple[str, Tensor]],
               batch: dict[str, Tensor], index: int, run: RunFolder, ids: Sequence[str], rank: int) -> None:
    """Stop at numbers that are not finite: the samples are named by their ids and kept in a file."""
    rows = batch.get("index")
    try:
        monitor.check(loss, norm, named, index, rows)
    except MonitorStop as stop:
        name = f"failed_batch_rank{rank}.safetensors"
        run.save_tensors(name, batch)
        where = "" if rows is None else f", samples {_listed([ids[int(i)] for i in rows])}"
        bad = torch.zeros(0 if rows is None else len(rows), dtype=torch.bool)
        for value in batch.values():
            if rows is not None and value.is_floating_point():
                bad |= ~torch.isfinite(value.detach().cpu().reshape(len(rows), -1)).all(1)
        if rows is not None and bool(bad.any()):
            where += f"; not finite in the input: {_listed([ids[int(i)] for i in rows[bad.to(rows.device)]])}"
        raise MonitorStop(stop.what, where=f"step {index}{where}",
                          fix=f"{stop.fix} The batch is in {run.path / name}.") from stop


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
