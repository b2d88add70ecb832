"""Samples that two datasets share: exact copies, and pictures re-compressed, resized or brightened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from osteon.data.dataset import Dataset
from osteon.data.listing import raw_bytes
from osteon.parts.types import DataSpec

#: Side of the grey thumbnails that are compared all against all.
COARSE = 16
#: Side at which candidates are verified (or the side of the images, if that is less).
FINE = 32
#: Least cosine of two thumbnails without their mean.
LIKE = 0.95
#: Least correlation of the fine detail (what is left without the lowest frequencies), over the picture and its middle.
DETAIL, MIDDLE = 0.8, 0.6
#: Thumbnails with less contrast than this share of the full range say nothing about a picture.
FLAT = 0.015
_BLOCK = 1024


@dataclass
class Duplicates:
    """What two datasets share.

    Args:
        exact: (id in the first, id in the second) with identical pixels: one pair for every such image of the second.
        near: the same for pictures that are alike but not identical, with the most alike image of the first.
        notes: what was compared and what could not be.
    """

    exact: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.exact) + len(self.near)


def find_duplicates(a: Dataset, b: Dataset, *, near: bool = True) -> Duplicates:
    """Which images of ``b`` (test data, say) occur in ``a`` (training data)?

    Exact: identical decoded pixels. Near (sides of at least 16 pixels): grey thumbnails of 16 x 16, compared all
    against all by cosine without the mean, so that brightness and contrast do not matter; candidates are then
    verified by the correlation of their fine detail at up to 32 x 32. Mirrored, turned, or shifted copies are not
    searched for. Of other modalities exact copies alone are found.

    Args:
        a: first dataset; must not be of another modality than ``b``.
        b: second dataset.
        near: whether to look for near copies as well.
    """
    found = Duplicates()
    done = np.zeros(len(b), bool)
    if a.images.shape[1:] == b.images.shape[1:] and a.images.dtype == b.images.dtype:
        first: dict[bytes, int] = {}
        for i, mark in enumerate(_hashes(a.images)):
            first.setdefault(mark, i)
        for j, mark in enumerate(_hashes(b.images)):
            if mark in first:
                found.exact.append((a.ids[first[mark]], b.ids[j]))
                done[j] = True
    else:
        found.notes.append("duplicates: sizes, channels or depths differ, so no pixels can be identical; "
                           "only near copies are found")
    side = min(a.images.shape[-1], b.images.shape[-1])
    if a.modality != "image":
        found.notes.append(f"duplicates: only exact copies were searched for (near copies are defined for images, "
                           f"these are {a.modality})")
    elif not near:
        found.notes.append("duplicates: only exact copies were searched for (as asked)")
    elif side < COARSE:
        found.notes.append(f"duplicates: only exact copies were searched for (images of {side} pixels are too small to "
                           f"tell a near copy from a look-alike; the least is {COARSE})")
    else:
        _find_near(a, b, done, found)
    return found


def transductive(spec: DataSpec) -> bool:
    """Whether samples are the nodes of one graph: all of it is seen without labels by definition of the task."""
    return spec.modality == "graph" and spec.traits.get("level") == "node"


#: What is said instead of looking for copies of test samples in unlabelled data of such a graph.
TRANSDUCTIVE = ("leak check: samples are nodes of one graph, all of which is seen without labels (transductive), so "
                "test nodes may lie in the pre-training data; that none is among the labelled ones was checked")


def _find_near(a: Dataset, b: Dataset, done: np.ndarray, found: Duplicates) -> None:
    second, flat_b = _thumbnails(b, 0, len(b))
    second[done] = 0.0  # identical copies are known already
    best: dict[int, tuple[float, int]] = {}
    blank = 0
    for start in range(0, len(a), 8 * _BLOCK):  # of the first, which may be large, a block at a time
        part, flat = _thumbnails(a, start, min(len(a), start + 8 * _BLOCK))
        blank += int(flat.sum())
        for low in range(0, len(b), _BLOCK):
            rows, columns = np.nonzero(part @ second[low:low + _BLOCK].T >= LIKE)
            if len(rows):
                _verify(a, b, rows + start, columns + low, best)
    if blank or (flat_b & ~done).any():
        found.notes.append(f"duplicates: {blank} + {int((flat_b & ~done).sum())} images are almost blank; "
                           "only exact copies of them are found")
    found.near = [(a.ids[i], b.ids[j]) for j, (_, i) in sorted(best.items())]


def _verify(a: Dataset, b: Dataset, rows: np.ndarray, columns: np.ndarray, best: dict[int, tuple[float, int]]) -> None:
    """Keep in ``best`` the pairs whose detail agrees too, the closest one for every image of ``b``."""
    side = min(a.images.shape[-1], b.images.shape[-1], FINE)
    edge = side // 4
    for start in range(0, len(rows), _BLOCK):
        left, right = rows[start:start + _BLOCK], columns[start:start + _BLOCK]
        x, y = _grey(a, left, side), _grey(b, right, side)
        whole = _cosine(_detail(x), _detail(y))
        # Two strangers in the same frame agree everywhere but in their middle.
        middle = _cosine(_detail(x[:, edge:-edge, edge:-edge]), _detail(y[:, edge:-edge, edge:-edge]))
        for i, j, score in zip(left, right, np.where((whole >= DETAIL) & (middle >= MIDDLE), whole, -1.0), strict=True):
            if score > best.get(int(j), (0.0, 0))[0]:
                best[int(j)] = (float(score), int(i))


def _thumbnails(data: Dataset, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Of images ``begin`` to ``end``: ((N, 256) float32 without mean and of length 1, zero where blank; (N,) bool which
    are blank)."""
    out = np.empty((end - begin, COARSE * COARSE), np.float32)
    for start in range(begin, end, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, end))
        out[rows - begin] = _grey(data, rows, COARSE).reshape(len(rows), -1)
    out -= out.mean(1, keepdims=True)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    span = 1.0 if data.spec.scale > 1 else max(1e-12, 4 * float(np.mean(data.spec.std)))  # floats have no known range
    flat = length[:, 0] / COARSE < FLAT * span
    out /= np.maximum(length, 1e-12)
    out[flat] = 0.0
    return out, flat


def _grey(data: Dataset, rows: np.ndarray, side: int) -> np.ndarray:
    """(B, side, side) float32: grey (mean of channels; ITU-R 601 for three), reduced by averaging areas."""
    images = data.images[rows]
    channels = images.shape[1]
    weights = np.array([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels, np.float32)
    grey = np.tensordot(weights / np.float32(data.spec.scale), images.astype(np.float32), axes=(0, 1))
    shrink = area_matrix(grey.shape[-1], side)
    return shrink @ grey @ shrink.T


def area_matrix(size: int, side: int) -> np.ndarray:
    """(side, size) weights that average a line of ``size`` pixels into ``side`` equal stretches; rows sum to 1."""
    edges = np.linspace(0, size, side + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * side / size).astype(np.float32)


def _detail(grey: np.ndarray) -> np.ndarray:
    """What a picture (B, S, S) has beyond its version averaged to areas of 4 x 4 pixels and smoothly enlarged again."""
    size = grey.shape[-1]
    few = size // 4
    centres = (np.arange(few) + 0.5) * size / few - 0.5
    enlarge = np.stack([np.interp(np.arange(size), centres, row) for row in np.eye(few)], axis=1)
    smooth = (enlarge @ area_matrix(size, few)).astype(np.float32)
    return grey - smooth @ grey @ smooth.T


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return (x * y).sum(1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1e-12)


def _hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(raw_bytes(image), digest_size=16).digest() for image in images]
