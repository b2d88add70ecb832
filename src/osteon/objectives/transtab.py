"""TransTab's pre-training: groups of columns of one row, or of rows of one label, attract; all others repel.

Wang & Sun 2022, "TransTab: Learning Transferable Tabular Transformers Across Tables", section on vertical-partition
contrastive learning.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.cells import by_names, column_groups, exists, only, partitions
from osteon.parts.losses.supcon import supcon
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="transtab",
    papers=("TransTab: Learning Transferable Tabular Transformers Across Tables",),
    modalities=("table",),
    differs="The contrast of groups of columns alone. With --set names=pieces a row is read as in the paper, by the "
    "words of its columns and cells, and a network reads any table: but words are hashed to vectors instead of split "
    "by BERT's vocabulary, the backbone normalises before its layers, activations are GELU, and there is no dropout. "
    "Otherwise a column has weights of its own, so that a network belongs to one table, the feed-forward gate is left "
    "out, groups are pooled as the backbone pools (backbone.pool=cls: the paper's token), and a missing cell has a "
    "vector of its own; by names it is skipped instead of being 0 or the text 'nan'. Columns are shuffled anew at "
    "every step, as the authors' split by the order of the file never changes its groups. Self-supervised by default; "
    "the authors' default is supervised=true. Tables mixed in one run are cut into groups table by table, but share "
    "batches, so that rows of other tables are negatives too; the authors' batches are of one table.",
    rows=(384,),
    backbones=("tokens",),
    cost="1.5 forwards of a row, in 3 groups of its columns",
)


class TransTab(Objective):
    """Vertical-partition contrast.

    Each group of columns is encoded alone, so that no group sees another's cells; plain products of the projections
    over the temperature are compared, not cosines. The positives of a group are the row's other groups, or, supervised,
    all other groups of rows with its label.

    Args:
        backbone: network to train; it reads a row column by column.
        data: what the data look like.
        partitions: groups of columns.
        overlap: share of a group that its neighbour sees too.
        temperature: T of the softmax; 10 belongs to plain products.
        supervised: rows of one label attract; the data must have one label a row.
        out: width of the projection.
    """

    # Adam at 1e-4 and batch 64, as the authors'; the square root keeps its noise scale at other batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 64, "lr_rule": "sqrt", "weight_decay": 0.0,
                        "schedule": "constant", "warmup": 0.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, partitions: int = 3, overlap: float = 0.5,
                 temperature: float = 10.0, supervised: bool = False, out: int = 128) -> None:
        super().__init__(backbone, data)
        columns = math.prod(data.extent)
        if not 2 <= partitions <= columns:
            raise UsageError(f"{columns} columns cannot be cut into {partitions} groups.", where="--set partitions",
                             fix=f"Give 2 to {columns}." if columns > 1 else "Give a table of more columns.")
        if not 0 <= overlap <= 1 or temperature <= 0 or out < 1:
            raise UsageError("overlap lies in [0, 1]; temperature and out are positive.", where="transtab")
        if supervised and (data.num_classes < 2 or data.multi_label):
            raise UsageError("Rows of one label can attract only where every row has one of several.",
                             where="--set supervised", fix="Name a label, or leave supervised out.")
        self.views = make_views("none", data)
        self.partitions, self.overlap, self.temperature, self.supervised = partitions, overlap, temperature, supervised
        self.projector = nn.Linear(backbone.dim, out, bias=False)
        self.notes = list(self.views.notes)

    def groups(self, draws: Draws) -> list[Tensor]:
        """Columns of every group at this step, the same for all rows that have all columns."""
        return partitions(self._order(draws).argsort(), self.partitions, self.overlap)

    def _order(self, draws: Draws) -> Tensor:
        columns = math.prod(self.data.extent)
        return draws.fork("columns").shared_rand(columns)

    def _pooled(self, x: Tensor, draws: Draws) -> list[Tensor]:
        """Pooled features of every group alone, (B, D) each."""
        if not by_names(self.data):
            return [self.backbone(x, keep=group.expand(len(x), -1)).pooled for group in self.groups(draws)]
        groups = column_groups(exists(x), self._order(draws), self.partitions, self.overlap)
        return [self.backbone(only(x, group)).pooled for group in groups]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Projections ``"z"`` (B, G, P) of every group, the row's ``"label"`` (B,), and pooled features."""
        x = self.views(batch[self.data.modality], draws)[0].x
        pooled = self._pooled(x, draws)
        label = batch["label"] if self.supervised else draws.rows
        return {"z": torch.stack([self.projector(p) for p in pooled], 1), "label": label.to(x.device),
                "features": torch.stack(pooled, 1).mean(1).detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Contrast of all groups of the whole batch."""
        z = encoded["z"]
        total = supcon(z.flatten(0, 1), encoded["label"].repeat_interleave(z.shape[1]), self.temperature, cosine=False)
        return Loss(total, {"contrast": total.detach()})
