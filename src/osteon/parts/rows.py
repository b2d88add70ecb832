"""Features read a block at a time, from memory or from a file mapped into it: all rows never lie there at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Rows read at once where nothing else says how many.
BLOCK = 8192


class Rows:
    """A matrix (N, D) of float32 that is read where it is asked for.

    ``rows[start:stop]`` and ``rows[numbers]`` give tensors; ``subset``, ``mapped`` and ``followed_by`` give other
    ``Rows`` and read nothing. ``np.asarray(rows)`` reads everything.

    Args:
        source: (N, D) numbers, in memory or memory-mapped.
        index: row numbers of ``source`` that belong, in order; None: all of them.
        change: applied to every block read: (b, D) -> (b, D), each row by itself.
    """

    def __init__(self, source: np.ndarray | Tensor, index: np.ndarray | None = None,
                 change: Callable[[Tensor], Tensor] | None = None) -> None:
        self._parts: list[tuple[np.ndarray | Tensor, np.ndarray | None]] = [(source, index)]
        self._change = change
        self.shape = (len(source) if index is None else len(index), int(source.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the rows come out: that of a tensor, else the CPU."""
        source = self._parts[0][0]
        return source.device if isinstance(source, Tensor) else torch.device("cpu")

    def subset(self, index: np.ndarray) -> Rows:
        """The rows of these numbers, in this order."""
        if len(self._parts) > 1:
            raise ValueError("rows of several sources have no subsets")
        source, own = self._parts[0]
        return Rows(source, index if own is None else own[index], self._change)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same rows, each changed by a function of (b, D) blocks when it is read."""
        out, before = self._like(), self._change
        out._change = change if before is None else lambda x: change(before(x))
        return out

    def followed_by(self, other: Rows) -> Rows:
        """These rows and then those of another matrix of the same width, both read as they are stored."""
        out = self._like()
        out._parts, out.shape = [*self._parts, *other._parts], (len(self) + len(other), self.shape[1])
        return out

    def __getitem__(self, at: slice | Tensor | np.ndarray) -> Tensor:
        if isinstance(at, slice):
            at = range(*at.indices(len(self)))  # type: ignore[assignment]
        numbers = np.asarray(at if not isinstance(at, Tensor) else at.cpu(), dtype=np.int64)
        if len(self._parts) == 1:
            out = self._read(0, numbers)
        else:
            out = torch.empty(len(numbers), self.shape[1])
            first = 0
            for part, (source, index) in enumerate(self._parts):
                stop = first + len(source if index is None else index)
                mine = (numbers >= first) & (numbers < stop)
                if mine.any():
                    out[torch.from_numpy(mine)] = self._read(part, numbers[mine] - first)
                first = stop
        return out if self._change is None else self._change(out)

    def split(self, size: int = BLOCK) -> Iterator[Tensor]:
        """All rows in order, ``size`` at a time."""
        return (self[start:start + size] for start in range(0, len(self), size))

    def mean(self) -> Tensor:
        """Mean row (D,), summed in float64."""
        total = torch.zeros(self.shape[1], dtype=torch.float64, device=self.device)
        for block in self.split():
            total += block.sum(0, dtype=torch.float64)
        return (total / max(1, len(self))).float()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, dtype=np.float32)
        for i, block in enumerate(self.split()):
            out[i * BLOCK:(i + 1) * BLOCK] = block.cpu().numpy()
        return out if dtype is None else out.astype(dtype)

    def _like(self) -> Rows:
        out = Rows.__new__(Rows)
        out._parts, out._change, out.shape = self._parts, self._change, self.shape
        return out

    def _read(self, part: int, numbers: np.ndarray) -> Tensor:
        source, index = self._parts[part]
        if index is not None:
            numbers = index[numbers]
        run = len(numbers) > 0 and numbers[-1] - numbers[0] + 1 == len(numbers) and bool((np.diff(numbers) == 1).all())
        where: Any = slice(int(numbers[0]), int(numbers[-1]) + 1) if run else numbers
        if isinstance(source, Tensor):
            return source[where if run else torch.from_numpy(numbers).to(source.device)].float()
        return torch.from_numpy(np.array(source[where], dtype=np.float32, order="C"))


class OneHot:
    """Class numbers (N,) read as (b, K) float32 of 0 and 1; (N, K) labels of 0 and 1 pass through.

    Args:
        y: (N,) int64 or (N, K) 0/1.
        classes: K.
        device: where the blocks come out.
    """

    def __init__(self, y: np.ndarray, classes: int, device: torch.device | None = None) -> None:
        self.y, self.device = torch.from_numpy(np.ascontiguousarray(y)), device
        self.shape = (len(y), classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Labels of the given row numbers (...), as (..., K)."""
        y = self.y[rows.cpu()]
        hot = y if self.y.ndim == 2 else torch.nn.functional.one_hot(y, self.shape[1])
        return hot.to(self.device, torch.float32)
