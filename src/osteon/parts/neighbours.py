"""Exact nearest neighbours in bounded memory: screened in few digits, ranked again in many.

Screening multiplies blocks of queries and of the store in bf16 (float16 on a GPU) and keeps some more candidates than
are wanted; their similarities are then computed from the float32 rows. How far a screened similarity can be off is
known from what rounding took off the rows, so every query knows whether a row it never looked at closely could have
been nearer; those few that cannot tell are searched again, with more candidates and more digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.parts.rows import Rows

#: Rows of queries and of the store that meet at once: 512 x 8,192 similarities are 16 MiB in float32.
QUERY_BLOCK, STORE_BLOCK = 512, 8192
#: Queries that go over the store together.
COMPANY = 16384
#: Columns of which only the largest is looked at first.
GROUP = 16
#: Widths from which screening in few digits pays.
NARROW = 64


@dataclass(frozen=True)
class Rung:
    """One way of screening: the type it multiplies in, and candidates beyond those wanted."""

    dtype: torch.dtype
    spare: int


def centred_unit(x: Tensor, mean: Tensor) -> Tensor:
    """Features less ``mean`` (D,), scaled to length 1; (N, D) -> (N, D). A row equal to the mean stays 0."""
    return F.normalize(x - mean, dim=1, eps=1e-12)


def nearest(query: Tensor | Rows, store: Tensor | Rows, k: int, *, exclude_self: bool = False,
            screen: torch.dtype | None = None, query_block: int = QUERY_BLOCK,
            store_block: int = STORE_BLOCK) -> tuple[Tensor, Tensor]:
    """The k rows of ``store`` with the largest inner product with each query, exactly.

    The inner product is that of the float32 rows, summed in float64 and rounded to float32; equal ones are ordered by
    row number. So the result depends neither on ``screen`` nor on the blocks. For rows of length 1 these are the
    nearest in Euclidean distance, d^2 = 2 - 2 similarity. Memory beyond the inputs and the result is about
    ``query_block * store_block`` numbers, a block of the store, and 16,384 queries with their candidates.

    Args:
        query: (M, D), in memory or read in blocks.
        store: (N, D), in memory or read in blocks.
        k: neighbours wanted; at most N (N - 1 with ``exclude_self``) are returned.
        exclude_self: query i is row i of the store and must not find itself (leave-one-out).
        screen: type to screen in; by default float16 on a GPU, bf16 on a CPU that multiplies it natively, if rows are
            wide, else float32.
        query_block: rows of queries at once.
        store_block: rows of the store at once.

    Returns:
        Similarities (M, k), falling, and row numbers (M, k) int64.
    """
    queries, rows = (x if isinstance(x, Rows) else Rows(x) for x in (query, store))
    n, width = rows.shape
    k = max(0, min(k, n - 1 if exclude_self else n))
    values = torch.empty(len(queries), k, device=rows.device)
    found = torch.empty(len(queries), k, dtype=torch.int64, device=rows.device)
    if not k:
        return values, found
    few = screen or screening_type(rows.device, width)
    ladder = [Rung(few, 44), Rung(few, 4 * k + 300)] if few != torch.float32 else []
    ladder.append(Rung(torch.float32, 2 * k + 64))
    with _sums_in_float32(rows.device):
        for start in range(0, len(queries), COMPANY):
            q = queries[start:start + COMPANY].to(rows.device)
            left = torch.arange(len(q), device=rows.device)
            for rung in [*ladder, None]:
                search = _Search(q[left], rows, k, left + start if exclude_self else None, query_block, store_block)
                v, i, sure = search.in_full() if rung is None else search.screened(rung)
                at = left[sure] + start
                values[at], found[at] = v[sure], i[sure]
                left = left[~sure]
                if not len(left):
                    break
    return values, found


@contextmanager
def _sums_in_float32(device: torch.device) -> Iterator[None]:
    """Inside, products of few digits are summed in float32 throughout, which GPUs are otherwise free not to do."""
    names = [f"allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")] if device.type == "cuda" else []
    before = {name: getattr(torch.backends.cuda.matmul, name) for name in names}
    try:
        for name in names:
            setattr(torch.backends.cuda.matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cuda.matmul, name, value)


def screening_type(device: torch.device, width: int) -> torch.dtype:
    """The type of few digits that this device multiplies fast, or float32."""
    if width < NARROW:
        return torch.float32
    if device.type == "cuda":
        return torch.float16
    native = [getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported",
                                                                     "_is_amx_tile_supported")]
    return torch.bfloat16 if any(native) else torch.float32


@dataclass
class _Search:
    """Queries q (m, D) that go over the store together; ``own`` (m,) are row numbers they must not find."""

    q: Tensor
    store: Rows
    k: int
    own: Tensor | None
    query_block: int
    store_block: int

    def screened(self, rung: Rung) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities and rows (m, k), and of which queries (m,) they are certainly right."""
        available = len(self.store) - (self.own is not None)
        want = min(self.k + rung.spare, available)
        few, lost, length = _rounded(self.q, rung.dtype)
        best_v, best_i = self.q.new_empty(len(self.q), 0), self.q.new_empty(len(self.q), 0, dtype=torch.int64)
        most_lost = longest = 0.0
        for first in range(0, len(self.store), self.store_block):
            block = self.store[first:first + self.store_block]
            s, s_lost, s_length = _rounded(block, rung.dtype)
            most_lost, longest = max(most_lost, float(s_lost.max())), max(longest, float(s_length.max()))
            best_v, best_i = self._meet(few, s, first, want, best_v, best_i)
        fine = self._pair(best_i)
        chosen = fine.topk(min(self.k + 8, want), dim=1)
        rows = best_i.gather(1, chosen.indices)
        values, rows = _ordered(self._pair(rows, torch.float64).float(), rows, self.k)
        # What was left out is at most this similar: the last one kept, its rounding, and what rounding rows took off.
        sums = self.q.shape[1] * 2.0**-24 * length * longest
        unseen = best_v[:, -1] + torch.finfo(rung.dtype).eps * best_v[:, -1].abs()
        unseen = unseen + lost * longest + length * most_lost + 2 * sums
        sure = values[:, -1] > unseen if want < available else torch.ones_like(lost, dtype=torch.bool)
        if rows.shape[1] < want and chosen.values.shape[1] < want:
            sure &= values[:, -1] > chosen.values[:, -1] + 2 * sums
        return values, rows, sure  # beyond what float16 holds, rows lose infinitely much and nothing is sure

    def _meet(self, q: Tensor, s: Tensor, first: int, want: int, best_v: Tensor, best_i: Tensor
              ) -> tuple[Tensor, Tensor]:
        """Candidates so far and those of one block of the store: the ``want`` most similar, in no order."""
        out_v, out_i = [], []
        for start in range(0, len(q), self.query_block):
            at = slice(start, start + self.query_block)
            v, i = _largest(self._similarity(q[at], s, first, at), want)
            v, i = torch.cat([best_v[at], v.float()], 1), torch.cat([best_i[at], i + first], 1)
            if v.shape[1] > want:
                v, keep = v.topk(want, dim=1)
                i = i.gather(1, keep)
            out_v.append(v)
            out_i.append(i)
        v, i = torch.cat(out_v), torch.cat(out_i)
        if v.shape[1] == want:  # the last is the least
            v, order = v.sort(dim=1, descending=True)
            i = i.gather(1, order)
        return v, i

    def in_full(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every similarity in float64, rounded to float32: for queries with more equals than candidates."""
        q, out = self.q.double(), []
        for start in range(0, len(q), self.query_block):
            at = slice(start, start + self.query_block)
            best_v, best_i = self.q.new_empty(len(q[at]), 0), self.q.new_empty(len(q[at]), 0, dtype=torch.int64)
            for first in range(0, len(self.store), self.store_block):
                s = self.store[first:first + self.store_block].double()
                v, i = _top(self._similarity(q[at], s, first, at).float(), self.k)
                best_v, best_i = _ordered(torch.cat([best_v, v], 1), torch.cat([best_i, i + first], 1), self.k)
            out.append((best_v, best_i))
        sure = torch.ones(len(q), dtype=torch.bool, device=q.device)
        return torch.cat([v for v, _ in out]), torch.cat([i for _, i in out]), sure

    def _similarity(self, q: Tensor, s: Tensor, first: int, at: slice) -> Tensor:
        similarity = q @ s.T
        if self.own is not None:
            own = self.own[at] - first
            inside = (own >= 0) & (own < similarity.shape[1])
            similarity[inside.nonzero()[:, 0], own[inside]] = -torch.inf
        return similarity

    def _pair(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Similarity of each query with its own rows: (m, c) -> (m, c), a few queries at a time."""
        step = max(1, 2**21 // max(1, rows.shape[1] * self.q.shape[1]))
        parts = []
        for start in range(0, len(rows), step):
            i = rows[start:start + step]
            s = self.store[i.flatten()].view(*i.shape, -1)
            parts.append(torch.bmm(s.to(dtype), self.q[start:start + step, :, None].to(dtype))[..., 0])
        return torch.cat(parts)


def _rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in another type, the length (N,) of what rounding took off each, and the longer length of both."""
    few = x.to(dtype)
    if dtype == x.dtype:
        return few, x.new_zeros(len(x)), x.norm(dim=1)
    back = few.float()
    return few, (x - back).norm(dim=1), torch.maximum(x.norm(dim=1), back.norm(dim=1))


def _largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, in no order; by the maxima of groups of columns where rows are long.

    A group that holds one of the ``count`` largest is itself among the ``count`` groups with the largest maxima.
    """
    width = x.shape[1] // GROUP
    if width < 2 * count:
        return x.topk(min(count, x.shape[1]), dim=1, sorted=False)
    head = x[:, :width * GROUP]
    groups = head.view(len(x), GROUP, width).amax(1).topk(count, dim=1, sorted=False).indices
    columns = (groups[:, None, :] + width * torch.arange(GROUP, device=x.device)[:, None]).flatten(1)
    if x.shape[1] > width * GROUP:
        rest = torch.arange(width * GROUP, x.shape[1], device=x.device).expand(len(x), -1)
        columns = torch.cat([columns, rest], 1)
    v, keep = x.gather(1, columns).topk(count, dim=1, sorted=False)
    return v, columns.gather(1, keep)


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, the lower column winning ties at the edge (``topk`` leaves that open)."""
    k = min(k, similarity.shape[1])
    v, i = similarity.topk(k, dim=1)
    tied = ((similarity >= v[:, -1:]).sum(1) > k).nonzero()[:, 0]
    if len(tied):
        ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
        v[tied], i[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return v, i


def _ordered(values: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort candidates by falling value, then rising row number, and keep k."""
    by_row = rows.argsort(dim=1)
    values, rows = values.gather(1, by_row), rows.gather(1, by_row)
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], rows.gather(1, ordered.indices)[:, :k]
