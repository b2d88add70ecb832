"""Pictures that go into a report: neighbours by feature, a map of the features, reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osteon.core.atomic import atomic_path
from osteon.data import Dataset
from osteon.parts.types import DataSpec
from osteon.report.project import project_2d

QUERIES, NEIGHBOURS, ON_MAP = 6, 7, 1000


def to_uint8(x: Tensor | np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Images for the eye. (B, C, H, W) values in [low, high] -> (B, H, W, 3) uint8.

    One channel is shown grey, three as colours, any other number by its first three (or first) channels.
    """
    a = np.asarray(x, dtype=np.float32).transpose(0, 2, 3, 1)
    a = a[..., :3] if a.shape[-1] >= 3 else np.repeat(a[..., :1], 3, axis=-1)
    return (np.clip((a - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)


def viewable(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Stored images of a data set as (B, H, W, 3) uint8; float data are stretched to their own 1st-99th percentile."""
    x = dataset.batch(rows)["image"].float() / dataset.spec.scale
    if dataset.spec.scale != 1.0:
        return to_uint8(x.numpy())
    low, high = np.percentile(x.numpy(), [1, 99])
    return to_uint8(x.numpy(), float(low), float(high))


def collect_artefacts(dataset: Dataset, features: np.ndarray, spec: DataSpec,
                      triple: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, np.ndarray]:
    """Arrays the report page draws from.

    Args:
        dataset: the samples shown, row for row those of ``features``.
        features: (N, D).
        spec: statistics the reconstructions were normalised with.
        triple: input, corrupted input and reconstruction (B, C, H, W), normalised; or None.
    """
    arrays: dict[str, np.ndarray] = {}
    n = len(dataset)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if n > NEIGHBOURS:
        queries = np.linspace(0, n - 1, QUERIES).round().astype(int)
        near = np.argsort(-(unit[queries] @ unit.T), axis=1, kind="stable")
        near = np.stack([row[row != q][:NEIGHBOURS] for row, q in zip(near, queries, strict=True)])
        arrays["gallery_query"] = viewable(dataset, queries)
        arrays["gallery_neighbours"] = np.stack([viewable(dataset, row) for row in near])
        if dataset.labels is not None and dataset.labels.ndim == 1:
            names = np.array([dataset.class_names[i] if dataset.class_names else str(i) for i in dataset.labels])
            arrays["gallery_query_labels"] = names[queries]
            arrays["gallery_labels"] = names[near]
    arrays["map_xy"] = project_2d(features[:ON_MAP], seed=0).astype(np.float32)
    if dataset.labels is not None and dataset.labels.ndim == 1:
        arrays["map_label"] = dataset.labels[:ON_MAP].astype(np.int64)
        arrays["class_names"] = np.array(dataset.class_names or [str(i) for i in range(int(dataset.labels.max()) + 1)])
    if triple is not None:
        triple = (triple[0].cpu(), triple[1].cpu(), triple[2].cpu())
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        low, high = (0.0, 1.0) if spec.scale != 1.0 else _range(triple[0] * std + mean)
        for key, x in zip(("recon_input", "recon_corrupted", "recon_output"), triple, strict=True):
            arrays[key] = to_uint8((x.float() * std + mean).numpy(), low, high)
    return arrays


def _range(x: Tensor) -> tuple[float, float]:
    return float(x.quantile(0.01)), float(x.quantile(0.99))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays to one compressed ``.npz``, atomically and without pickles."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
