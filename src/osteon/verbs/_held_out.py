"""The loss of a run's own task on test samples (``--metrics held_out``), beside what needs no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.evaluators.held_out import HeldOut
from osteon.modalities.text import load_tokenizer
from osteon.parts.intervals import Interval
from osteon.parts.judged import CHAMFER, NATS, Judged, constant_answer, nearest_cloud, nearest_sample, nearest_token
from osteon.parts.low_rank import train_low_rank
from osteon.parts.ngrams import NEVER, KneserNey, errors_before, errors_between
from osteon.parts.objective import Objective
from osteon.parts.types import DataSpec, Draws, Step
from osteon.verbs._model import Trained, fit_samples

#: Samples judged at a time. Which tokens are hidden hangs on it.
BATCH = 64
#: Most numbers over which controls of hidden words are added up: words asked for times the vocabulary.
MOST = 2 * 10**8
Control = Callable[[Judged], Tensor]


def held_out(models: Sequence[Trained], runs: Sequence[Path], train: Dataset, test: Dataset,
             say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """What the tasks of runs cost on ``test``, with controls that are fitted on ``train``, by the runs' names.

    Raises:
        UsageError: an objective predicts nothing of a sample, or the run keeps no checkpoint.
    """
    if test.modality == "several":
        raise UsageError("Errors of several modalities have no common unit.", where="--metrics held_out",
                         fix="Use osteon match, or evaluators of features.")
    found = {}
    for model, run in zip(models, runs, strict=True):
        say(f"{model.name}: its own task on the test samples")
        found[run.name] = _section(model, run, train, test)
    return found


def overall(sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The verdict of an evaluation that consists of nothing else: that of the run of the least loss."""
    first = min(sections.values(), key=lambda s: min(a["loss"] for a in s["arms"] if a["kind"] == "pretrained"))
    return dict(first["verdict"])


def lines(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table for the terminal a run: every arm, least loss first, and the verdict."""
    out = []
    for section in sections.values():
        wide = max(len(a["name"]) for a in section["arms"])
        out += [f"{section['name']}, {section['unit']}, {section['samples']:,} samples:"]
        for a in section["arms"]:
            more = "".join(f"  {word} {a[key]:.4g}" for key, word in (
                ("perplexity", section["perplexity"]), ("bits_per_byte", "bits a byte")) if key in a)
            out.append(f"{a['name']:{wide}}  {a['kind']:10}  {a['loss']:.4g} [{a['low']:.4g}, {a['high']:.4g}]{more}")
        out += ["", section["verdict"]["sentence"], ""]
    return out[:-1]


def load_objective(run: Path, model: Trained, *, trained: bool = True, seed: int = 0) -> Objective:
    """The objective of a run with all its networks, from its newest checkpoint; or the same untrained.

    Raises:
        UsageError: the run keeps no checkpoint of the model's step, or is none of ``osteon pretrain``.
    """
    made, folder = model.meta.get("objective"), RunFolder(run)
    if not made or model.adapter is not None:
        raise UsageError("This run has no task of its own to be judged by.", where=str(run),
                         fix="Give a run of osteon pretrain.")
    config = folder.config()
    cls = cast(type[Objective], registry.load(registry.find("objective", made["name"])))
    if cls.judge is Objective.judge:
        raise UsageError(f"{made['name']} predicts nothing of a sample, so that it has no loss that compares networks.",
                         where="--metrics held_out", fix="Leave held_out out, or give a run of clm, mlm, mae, simmim, "
                         "aim, point_cmae...")
    torch.manual_seed(seed)
    sides = cls.seen(model.spec.extent, made["options"])
    network = build_backbone(config["backbone"], channels=model.spec.channels, size=sides,
                             **config["backbone_options"])
    if trained and (config.get("continue") or {}).get("low_rank"):
        train_low_rank(network, int(config["continue"]["low_rank"]))
    method: Objective = registry.build("objective", made["name"], network, model.spec, **made["options"])
    if trained:
        found = folder.latest_checkpoint()
        if found is None or found[0] != model.meta.get("steps"):
            raise UsageError("The run keeps no checkpoint of its last step, which holds the heads of its task.",
                             where=str(run / "checkpoints"), fix="Give the folder as osteon pretrain left it.")
        try:
            method.load_state_dict({k.removeprefix("objective."): v for k, v in found[1].items()
                                    if k.startswith("objective.")})
        except RuntimeError as error:
            raise DataError("The checkpoint does not fit the run's objective.", where=str(run),
                            fix="Pre-train again.") from error
    return method.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _section(model: Trained, run: Path, train: Dataset, test: Dataset) -> dict[str, Any]:
    """One run beside its controls."""
    evaluator, method = HeldOut(), load_objective(run, model)
    other = load_objective(run, model, trained=False)
    costs: dict[str, list[np.ndarray]] = {}
    asked, sizes, controls = [], [], dict[str, Control]()
    notes, judged = list[str](), None
    for judged, rival in zip(_judge(method, model.spec, test), _judge(other, model.spec, test), strict=True):
        if not controls:
            controls, notes = _controls(judged, method, model, train, evaluator, len(test))
        answers = {model.name: judged.error, "untrained network": rival.error,
                   **{name: control(judged) for name, control in controls.items()}}
        for name, error in answers.items():
            costs.setdefault(name, []).append((error.double().cpu() * judged.asked.cpu()).sum(1).numpy())
        asked.append(judged.asked.sum(1).double().cpu().numpy())
        sizes.append(_bytes(judged, model.spec))
    assert judged is not None
    scale = float(model.spec.std[0]) ** 2 if judged.unit == CHAMFER else 1.0
    summed = {name: scale * np.concatenate(parts) for name, parts in costs.items()}
    questions = np.concatenate(asked)
    if not questions.sum():
        raise DataError("No token of the test samples is asked for.", where=test.source, fix="Give longer samples.")
    means = evaluator(summed, questions)
    words = judged.unit == NATS
    per_byte = questions.sum() / max(1.0, sum(sizes)) / math.log(2) if words and judged.causal else 0.0
    arms = [_row(name, mean, "pretrained" if name == model.name else "control", words, per_byte)
            for name, mean in means.items()]
    arms.sort(key=lambda a: a["loss"])
    return {"name": model.name, "objective": model.meta["objective"]["name"], "unit": judged.unit, "samples": len(test),
            "asked": int(questions.sum()), "perplexity": "perplexity" if judged.causal else "pseudo-perplexity",
            "arms": arms, "verdict": _verdict(arms, summed, questions, model.name, evaluator, judged),
            "notes": [*_notes(judged, method, words), *notes]}


def _judge(method: Objective, spec: DataSpec, dataset: Dataset) -> Iterator[Judged]:
    """The batches of a data set as an objective judges them; which tokens are hidden hangs on the batch alone."""
    device = next(method.parameters()).device
    for start in range(0, len(dataset), BATCH):
        rows = np.arange(start, min(start + BATCH, len(dataset)))
        draws = Draws(Step(0, 1), torch.arange(len(rows)), len(rows), device, name=f"held_out/{start}")
        with torch.no_grad():
            judged = method.judge(fit_samples(dataset, spec, rows).to(device), draws)
        yield judged


def _controls(judged: Judged, method: Objective, model: Trained, train: Dataset, evaluator: HeldOut,
              samples: int) -> tuple[dict[str, Control], list[str]]:
    """What answers the same questions without a network, fitted on training samples; and what is noted."""
    if judged.unit == NATS:
        asked = int(judged.asked.sum()) / len(judged.asked) * samples
        return _words(judged.causal, np.asarray(train.images[:, 0]), int(model.spec.traits["vocabulary"]), evaluator,
                      asked)
    rows = np.unique(np.linspace(0, len(train) - 1, min(evaluator.train_samples, len(train))).round().astype(np.int64))
    notes = [f"controls look in {len(rows):,} training samples"]
    if judged.unit == CHAMFER:
        pool = fit_samples(train, model.spec, rows)[:, :3].transpose(1, 2)
        return {"points at the centre": lambda j: _measured(j, torch.zeros_like(j.truth)),
                "nearest visible group": lambda j: _measured(j, nearest_token(j, _where(j, method))),
                "nearest training cloud": lambda j: _measured(j, nearest_cloud(
                    j.truth, j.asked, _where(j, method), pool.to(j.truth)))}, notes
    if method.backbone.own_error:
        shown = list(_judge(method, model.spec, train.subset(rows)))
        each = judged.truth.shape[1] if model.spec.modality == "table" else 1
        best = constant_answer(shown, each, method.backbone.shown_width)
        return {"best constant answer": lambda j: _measured(j, best.expand(*j.error.shape, -1))}, notes
    known = torch.cat([part.truth.float() for part in _judge(method, model.spec, train.subset(rows))])
    return {"mean of training samples": lambda j: _measured(j, known.mean(0).expand_as(j.truth)),
            "token before" if judged.causal else "nearest visible token":
                lambda j: _measured(j, nearest_token(j, _where(j, method))),
            "nearest training sample": lambda j: _measured(j, nearest_sample(j, known))}, notes


def _words(causal: bool, texts: np.ndarray, vocabulary: int, evaluator: HeldOut,
           asked: float) -> tuple[dict[str, Control], list[str]]:
    """Controls of words: all alike, by frequency, by what stands before or on both sides."""
    orders = range(1, (evaluator.order if causal else 2) + 1)
    models = [KneserNey(n, vocabulary).fit(texts) for n in orders if vocabulary**n < 2**62]
    names = ["unigram", "bigram", "trigram", *(f"{n}-gram" for n in range(4, evaluator.order + 1))]
    even = math.log(vocabulary - NEVER)
    controls: dict[str, Control] = {"uniform": lambda j: torch.full_like(j.error, even)}
    note = f"n-grams: interpolated Kneser-Ney, counted in {int((texts > 0).sum()):,} tokens of --train"
    if causal:
        for i, name in zip(range(len(models)), names, strict=False):
            controls[name] = lambda j, i=i: torch.from_numpy(  # type: ignore[misc]
                errors_before(models[:i + 1], j.truth.cpu().numpy()))
        return controls, [note]
    controls["unigram"] = lambda j: torch.from_numpy(errors_before(models[:1], j.truth.cpu().numpy()))
    if asked * vocabulary > MOST or len(models) < 2:
        return controls, [note, "pairs of words are left out of the controls: the vocabulary is too large for as many "
                          "questions"]
    controls["bigrams on both sides"] = lambda j: torch.from_numpy(
        errors_between(models, j.truth.cpu().numpy(), j.asked.cpu().numpy()))
    return controls, [note]


def _measured(judged: Judged, answer: Tensor) -> Tensor:
    assert judged.measure is not None
    return judged.measure(answer, judged.truth)


def _where(judged: Judged, method: Objective) -> Tensor:
    """Where tokens lie: what the network is told, else their cells of the grid, (B, N, P) or (N, P)."""
    if judged.places is not None:
        return judged.places
    sides = [torch.arange(side, device=judged.truth.device) for side in method.backbone.grid(*method.data.extent)]
    return torch.cartesian_prod(*sides).view(judged.truth.shape[1], -1).float()


def _bytes(judged: Judged, spec: DataSpec) -> float:
    """Bytes of the words that are asked for; 0 of anything else."""
    if judged.unit != NATS:
        return 0.0
    lengths = load_tokenizer(str(spec.traits["tokenizer"])).lengths()
    return float(lengths[judged.truth[judged.asked].cpu().numpy()].sum())


def _row(name: str, mean: Interval, kind: str, words: bool, per_byte: float) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "kind": kind, "loss": mean.mean, "low": mean.low, "high": mean.high}
    if words:
        row |= {key: math.exp(min(v, 700.0)) for key, v in (
            ("perplexity", mean.mean), ("perplexity_low", mean.low), ("perplexity_high", mean.high))}
    return row | ({"bits_per_byte": mean.mean * per_byte} if per_byte else {})


def _notes(judged: Judged, method: Objective, words: bool) -> list[str]:
    """What the numbers are, in words."""
    if words and judged.causal:
        return ["perplexity: exp of the mean cost of a word given those before it in its window; the first word of a "
                "window is not asked for"]
    share = getattr(method, "ratio", None)
    hidden = "" if share is None else f", {100 * float(share):.0f} % of a sample"
    if words:
        return [f"pseudo-perplexity: exp of the mean cost of words that are hidden together{hidden}; it is no "
                "perplexity of the text, and not that of Salazar et al. 2020, who hide one word at a time"]
    return [f"asked for: hidden tokens{hidden}; samples are whole, without augmentation"]


def _verdict(arms: Sequence[Mapping[str, Any]], costs: Mapping[str, np.ndarray], asked: np.ndarray, name: str,
             evaluator: HeldOut, judged: Judged) -> dict[str, Any]:
    """The run against the control of least loss."""
    control = next(a["name"] for a in arms if a["kind"] == "control")
    gap = evaluator.gap(costs[name], costs[control], asked)
    told = f"{100 * gap.mean:+.1f} % [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] of its loss ({judged.unit})"
    start = {"pays": "The model predicts held-out samples better than every control", "does not pay":
             "The model does not predict held-out samples better than its best control"}.get(
                 gap.answer, "Whether the model predicts held-out samples better than its best control cannot be told")
    return {"answer": gap.answer, "sentence": f"{start}: saved against {control}: {told}.",
            "numbers": {"loss_saved": {"mean": gap.mean, "low": gap.low, "high": gap.high,
                                       "name": f"against {control}"}}}
