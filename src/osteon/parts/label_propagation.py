"""Labels of a video's first frame carried to the others by the likeness of features: what correspondence is worth.

As in the evaluation of Xu and Wang 2021, "Rethinking Self-supervised Correspondence Learning: A Video Frame-level
Similarity Perspective" (VFS). Shape letters: T frames, D width, h w sides of a map, K labels, Q = h * w.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError


def within_radius(height: int, width: int, radius: float, device: torch.device | str = "cpu") -> Tensor:
    """Which places of a map lie within ``radius`` cells of each: (Q, Q) bool."""
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    place = torch.cartesian_prod(row, column).float()
    return (place[:, None] - place).square().sum(-1) <= radius**2


def propagate(features: Tensor, first: Tensor, *, memory: int = 20, topk: int = 10, temperature: float = 0.07,
              radius: float = 24) -> Tensor:
    """Labels of every frame of a video from those of its first.

    A place takes the labels of its ``topk`` nearest places, by the cosine of features, within ``radius`` cells in the
    first frame and in the ``memory`` frames before it, weighted by the softmax of the cosines over ``temperature``.

    Args:
        features: (T, D, h, w) a map a frame.
        first: (K, h, w) share of each label at every place of frame 0.
        memory: frames before the current one that are looked at, beside frame 0.
        topk: neighbours a place takes its labels from.
        temperature: T of the softmax.
        radius: cells.

    Returns:
        (T, K, h, w); frame 0 is ``first``.
    """
    frames, _, height, width = features.shape
    if first.shape[1:] != (height, width) or memory < 0 or topk < 1 or temperature <= 0 or radius < 0:
        raise UsageError(f"Labels {tuple(first.shape)} do not lie on maps {tuple(features.shape)}, or memory, topk, "
                         "temperature or radius is out of range.", where="label propagation",
                         fix="Resize the labels to the map; topk >= 1, temperature > 0.")
    unit = F.normalize(features.float().flatten(2), dim=1)  # (T, D, Q)
    labels = [first.float().flatten(1)]  # (K, Q) each
    near = within_radius(height, width, radius, features.device)
    for t in range(1, frames):
        seen = [0, *range(max(1, t - memory), t)]
        like = torch.cat([(unit[t].T @ unit[r]).masked_fill(~near, float("-inf")) for r in seen], 1)  # (Q, R * Q)
        best, where = like.topk(min(topk, like.shape[1]), dim=1)
        weight = (best / temperature).softmax(1)
        known = torch.cat([labels[r] for r in seen], 1)  # (K, R * Q)
        labels.append((known[:, where] * weight).sum(-1))
    return torch.stack(labels).view(frames, -1, height, width)


def region_similarity(predicted: Tensor, true: Tensor, label: int) -> float:
    """Intersection over union of one label, mean over the frames after the first (the field's J).

    Args:
        predicted: (T, H, W) int64 labels.
        true: (T, H, W) int64 labels.
        label: whose region it is. Frames that hold it in neither are right.
    """
    a, b = predicted[1:] == label, true[1:] == label
    both, either = (a & b).sum((1, 2)).double(), (a | b).sum((1, 2)).double()
    return float(torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both)).mean())
