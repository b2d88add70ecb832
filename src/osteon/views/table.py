"""Views of rows of a table: cells replaced by those of other rows, and cells hidden as missing.

Bahri et al. 2022 (SCARF, arXiv:2106.15147, section 3 and algorithm 1): a random subset of the columns, of the same size
in every row, takes values drawn from the columns' own distribution, which here is that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.cells import by_names, names_of, without
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views.crop import full_boxes
from osteon.views.masks import hidden_count, lowest
from osteon.views.pipeline import standardise, to_unit


@dataclass(frozen=True)
class TablePlan:
    """What one view consists of, in the order in which it is done.

    Args:
        corrupt: share of the columns whose cell is replaced by that of another row, each column by that of its own.
        hide: share of the columns that are made missing; at least one is left.
    """

    corrupt: float = 0.0
    hide: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.corrupt <= 1 and 0 <= self.hide < 1):
            raise UsageError(f"Shares of {self.corrupt:g} and {self.hide:g} of the columns are impossible.",
                             where="views of table",
                             fix="min_scale and global_scale lie in (0, 1]; strength times what they leave in [0, 1].")

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of rows (B, 2, K)."""
        batch, columns, params = len(x), x.shape[2], dict[str, Tensor]()
        count = hidden_count(self.corrupt, columns)
        if count:
            stream = draws.fork("corrupt")
            params["corrupted"] = lowest(stream.rand(columns), count)
            other = partners(x, spec, stream.fork("partner"))
            taken = params["corrupted"]
            if by_names(spec):  # rows of other tables have nothing that would fit this column
                taken = taken & (names_of(other) == names_of(x)).all(1)
            x = torch.where(taken[:, None], other, x)
        count = min(hidden_count(self.hide, columns), columns - 1)
        if count:
            params["hidden"] = lowest(draws.fork("hide").rand(columns), count)
            x = self._hide(x, params["hidden"], spec)
        whole = torch.zeros(batch, dtype=torch.bool, device=x.device)
        return View(standardise(x, spec), Geometry(full_boxes(batch, x.device), whole), params)

    def _hide(self, x: Tensor, hidden: Tensor, spec: DataSpec) -> Tensor:
        if by_names(spec):
            return without(x, hidden)
        absent = torch.tensor([c["absent"] for c in spec.traits["columns"]], dtype=x.dtype, device=x.device)
        return torch.where(hidden[:, None], torch.stack([absent, torch.ones_like(absent)]), x)


def partners(x: Tensor, spec: DataSpec, draws: Draws) -> Tensor:
    """For every cell the same column's cell of another row of the global batch, drawn uniformly: (B, 2, K).

    Rows are drawn anew for every column. A batch of one row has no other: its own cells come back.
    """
    total, columns = draws.total, x.shape[2]
    u = draws.rand(columns).cpu()
    step = 1 + (u * (total - 1)).long().clamp(max=max(0, total - 2))
    row = (draws.rows[:, None].cpu() + step) % total  # (B, K)
    held = torch.full((total,), -1)
    held[draws.rows] = torch.arange(len(draws.rows))
    if bool((held >= 0).all()):
        pool, row = x, held[row]
    else:
        pool = to_unit(draws.take(spec.modality, torch.arange(total)), spec).to(x.device)
    place = torch.arange(columns, device=x.device)
    return pool[row.to(x.device), :, place].transpose(1, 2)


def none(spec: DataSpec) -> list[TablePlan]:
    """No augmentation."""
    return [TablePlan()]


def crop_flip(spec: DataSpec, *, min_scale: float = 1.0, n_views: int = 1) -> list[TablePlan]:
    """Nothing, or with ``min_scale`` below 1 that share of the columns, the others being missing."""
    return [TablePlan(hide=1 - min_scale)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.7, strength: float = 1.0, n_views: int = 2) -> list[TablePlan]:
    """Views drawn alike, each with 30 % of its cells replaced (the paper: 60 % of one view, the other left as it is).

    Args:
        spec: the data.
        min_scale: share of the columns that keep their cell.
        strength: multiplies the share of those that do not.
        n_views: number of views.
    """
    return [TablePlan(strength * (1 - min_scale))] * n_views


def byol(spec: DataSpec, *, min_scale: float = 0.7, strength: float = 1.0) -> list[TablePlan]:
    """A pair drawn as in :func:`simclr`."""
    return simclr(spec, min_scale=min_scale, strength=strength)


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.7,
              strength: float = 1.0) -> list[TablePlan]:
    """Two views of the whole row, then ``n_local`` that show half of the columns, the others being missing.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of views of half of the columns.
        stride: accepted for the sake of images, without effect.
        global_scale: share of the columns that keep their cell in a whole view.
        strength: multiplies the share of those that do not.
    """
    whole = TablePlan(strength * (1 - global_scale))
    return [whole, whole] + [TablePlan(whole.corrupt / 2, 0.5)] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 0.9, strength: float = 1.0) -> list[TablePlan]:
    """A tenth of the cells replaced, for training with labels."""
    return [TablePlan(strength * (1 - min_scale))]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[TablePlan]]] = {
    "none": none, "crop_flip": crop_flip, "simclr": simclr, "byol": byol, "multicrop": multicrop,
    "supervised": supervised,
}
