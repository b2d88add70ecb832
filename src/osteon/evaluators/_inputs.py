"""What every evaluator checks before it looks at features, so that a mistake is named and not scored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from osteon.core.errors import DataError
from osteon.parts.rows import Rows

Array = np.ndarray | Tensor | Rows


def features(x: Array, name: str) -> Tensor:
    """Features (N, D) as a finite float32 tensor on the device they are on; raises DataError otherwise."""
    if isinstance(x, Tensor):
        out = x.detach().to(torch.float32)
    else:
        array = np.asarray(x)
        # Copy what torch could not share safely: other types, read-only memory maps, negative strides.
        shared = array.dtype == np.float32 and array.flags.writeable and array.flags.c_contiguous
        out = torch.from_numpy(array) if shared else torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if out.ndim != 2 or 0 in out.shape:
        raise DataError(f"Features must have the shape (samples, width), but {name} has {tuple(out.shape)}.",
                        where=name)
    _finite(out, name)
    return out


def feature_rows(x: Array, name: str) -> Rows:
    """Features (N, D) checked like :func:`features`; memory-mapped ones stay in their file and are read in blocks."""
    if not isinstance(x, Rows | np.memmap):
        return Rows(features(x, name))
    out = x if isinstance(x, Rows) else Rows(x)
    if len(out.shape) != 2 or 0 in out.shape:
        raise DataError(f"Features must have the shape (samples, width), but {name} has {tuple(out.shape)}.",
                        where=name)
    first = 0
    for block in out.split():
        _finite(block, name, first)
        first += len(block)
    return out


def _finite(x: Tensor, name: str, first: int = 0) -> None:
    # A sum is finite only if every term is, and needs no mask of the size of the data; overflow is checked in full.
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise DataError("Features hold NaN or infinite values.", where=f"{name}, row {first + bad}",
                        fix="The backbone is broken there, or its input is.")


def labelled_rows(train_x: Array, train_y: Array, test_x: Array, classes: int) -> tuple[Rows, np.ndarray, Rows]:
    """What :func:`labelled` checks, without reading all features at once."""
    x, test = feature_rows(train_x, "train_x"), feature_rows(test_x, "test_x")
    _same_width(x.shape[1], test.shape[1])
    return x, labels(train_y, len(x), classes), test


def _same_width(train: int, test: int) -> None:
    if train != test:
        raise DataError(f"Training features are {train} wide and test features {test}.", where="test_x")


def labelled(train_x: Array, train_y: Array, test_x: Array, classes: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """Check a labelled task: train features (N, D), labels (N,) int64 or (N, K) uint8, test features (M, D)."""
    x, test = features(train_x, "train_x"), features(test_x, "test_x")
    _same_width(x.shape[1], test.shape[1])
    return x, labels(train_y, len(x), classes), test.to(x.device)


def numbered(train_x: Array, train_y: Array, test_x: Array) -> tuple[Tensor, np.ndarray, Tensor]:
    """Check a task of numbers: train features (N, D), targets (N,) float64, test features (M, D)."""
    x, test = features(train_x, "train_x"), features(test_x, "test_x")
    _same_width(x.shape[1], test.shape[1])
    return x, _targets(train_y, len(x)), test.to(x.device)


def numbered_rows(train_x: Array, train_y: Array, test_x: Array) -> tuple[Rows, np.ndarray, Rows]:
    """What :func:`numbered` checks, without reading all features at once."""
    x, test = feature_rows(train_x, "train_x"), feature_rows(test_x, "test_x")
    _same_width(x.shape[1], test.shape[1])
    return x, _targets(train_y, len(x)), test


def _targets(y: Array, rows: int) -> np.ndarray:
    out = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, np.float64)
    if out.shape != (rows,) or not np.isfinite(out).all():
        raise DataError(f"Targets must be one finite number for each of the {rows} samples, not of shape {out.shape}.",
                        where="train_y")
    return out


def labels(y: Array, rows: int, classes: int) -> np.ndarray:
    """Labels as (N,) int64 in [0, classes) or (N, classes) uint8 of 0 and 1; raises DataError otherwise."""
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if len(array) != rows:
        raise DataError(f"There are {rows} rows of features and {len(array)} labels.", where="train_y")
    if classes < 1:
        raise DataError(f"There must be at least one class, not {classes}.", where="classes")
    if array.ndim == 2:
        if array.shape[1] != classes or not np.isin(array, (0, 1)).all():
            raise DataError(f"Multi-label labels must be 0 or 1 in {classes} columns, not {array.shape}.",
                            where="train_y")
        return array.astype(np.uint8)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise DataError(f"Labels must be whole numbers (N,) or 0/1 (N, K), not {array.dtype} {array.shape}.",
                        where="train_y")
    if array.min() < 0 or array.max() >= classes:
        raise DataError(f"Labels run from {array.min()} to {array.max()}, but there are {classes} classes.",
                        where="train_y", fix="Unlabelled samples (-1) have to be left out.")
    return array.astype(np.int64)


def one_hot(y: np.ndarray, classes: int) -> Tensor:
    """Labels as (N, K) float32 of 0 and 1; multi-label passes through."""
    if y.ndim == 2:
        return torch.from_numpy(y.astype(np.float32))
    return torch.nn.functional.one_hot(torch.from_numpy(y), classes).float()


def validation_quality(scores: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """How good (M, K) probabilities are on a validation part: (share right, minus squared error), compared in order.

    The second decides where the first ties, as it often does on small validation parts. Multi-label: squared error
    alone, since its accuracy depends on a threshold.
    """
    target = one_hot(y, scores.shape[1]).numpy()
    error = -float(np.square(scores - target).mean())
    return (error, error) if y.ndim == 2 else (float((scores.argmax(1) == y).mean()), error)
