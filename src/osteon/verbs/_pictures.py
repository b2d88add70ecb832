"""Pictures that go into a report: neighbours by feature, a map of the features, reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osteon.core.atomic import atomic_path
from osteon.data import Dataset
from osteon.modalities import find
from osteon.parts.types import DataSpec
from osteon.report.project import project_2d

QUERIES, NEIGHBOURS, ON_MAP = 6, 7, 1000


def viewable(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Samples of a data set as pictures (B, h, w, 3) uint8."""
    x = dataset.batch(rows)[dataset.modality].float() / dataset.spec.scale
    return find(dataset.modality).picture(x.numpy(), dataset.spec)


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
        shape = (1, -1, *[1] * (triple[0].dim() - 2))
        mean, std = (torch.tensor(v).view(shape) for v in (spec.mean, spec.std))
        first, corrupted, output = ((part.float().cpu() * std + mean).numpy() for part in triple)
        draw = find(spec.modality).picture
        for key, x in (("recon_input", first), ("recon_corrupted", corrupted), ("recon_output", output)):
            arrays[key] = draw(x, spec, first)
    return arrays


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays to one compressed ``.npz``, atomically and without pickles."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
