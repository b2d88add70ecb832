"""First in, first out memory of past embeddings, kept in buffers so that checkpoints carry it.

He et al. 2020 (MoCo), arXiv:1911.05722, sec. 3.2; Caron et al. 2020 (SwAV), arXiv:2006.09882, sec. 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError


class Queue(nn.Module):
    """The last ``length`` entries that were pushed, without gradient.

    Push only in an objective's ``after_step``, and the whole global batch, so that every process holds the same.

    Args:
        length: entries kept at most; 0 = a queue that is always empty.
        shape: shape of an entry.
        dtype: type of its numbers.
    """

    entries: Tensor
    pushed: Tensor

    def __init__(self, length: int, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if length < 0:
            raise UsageError(f"A queue cannot hold {length} entries.", where="--set queue", fix="Give 0 or more.")
        self.length = length
        self.register_buffer("entries", torch.zeros(length, *shape, dtype=dtype))
        self.register_buffer("pushed", torch.tensor(0, dtype=torch.long))  # entries ever pushed

    def __len__(self) -> int:
        """Number of entries held now."""
        return min(int(self.pushed), self.length)

    @property
    def full(self) -> bool:
        """Whether every place is taken (never for length 0)."""
        return 0 < self.length == len(self)

    def read(self) -> Tensor:
        """Everything held, in no particular order. -> (len(self), *shape)."""
        return self.entries[: len(self)]

    @torch.no_grad()
    def push(self, entries: Tensor) -> None:
        """Add (B, *shape) entries in their order; the oldest make room."""
        if entries.shape[1:] != self.entries.shape[1:]:
            raise UsageError(f"This queue holds entries of shape {tuple(self.entries.shape[1:])}.",
                             where=f"entries {tuple(entries.shape)}")
        count = len(entries)
        kept = entries[-self.length:] if self.length else entries[:0]
        start = int(self.pushed) + count - len(kept)
        places = torch.arange(start, start + len(kept), device=self.entries.device) % max(1, self.length)
        self.entries[places] = kept.detach().to(self.entries)
        self.pushed += count
