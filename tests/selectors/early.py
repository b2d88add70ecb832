"""A pool whose "trained" networks have known outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from osteon.parts.selection import Learner, Pool


class Table(nn.Module):
    """The logits of sample i are row i of a table, whose number the image carries."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        hot = (x[:, :1, 0, 0] == torch.arange(len(self.logits))).float()
        return hot @ self.logits


def pool(tables: Sequence[Tensor], labels: Sequence[int], asked: list[tuple[int, float]]) -> Pool:
    """One table a run; ``asked`` collects (seed, epochs)."""
    count = len(labels)

    def learn(seed: int, epochs: float) -> Learner:
        asked.append((seed, epochs))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in torch.arange(count).split(2):
                yield rows.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.tensor(labels)[rows]

        return Learner(Table(tables[(len(asked) - 1) % len(tables)]).eval(), batches)

    return Pool(count, labels=np.array(labels), learn=learn)
