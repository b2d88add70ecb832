"""A backbone as a program that plain PyTorch loads: ``torch.export.load(file).module()(samples)`` gives features."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.atomic import atomic_path
from osteon.core.errors import UsageError
from osteon.parts.tracing import traced

#: largest difference allowed between a network and its stored form, over the largest feature where that is above 1
TOLERANCE = 1e-5


class Pooled(nn.Module):
    """Only the pooled features, which is what a stored program returns."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *extent) normalised -> (B, D)."""
        return self.backbone(x).pooled


def write_program(path: Path, backbone: Backbone) -> Path:
    """Write a program with a free batch size and check it, read back, on another batch.

    It holds weights and a graph as text; no example inputs, whose format would be a pickle.

    Raises:
        UsageError: the program does not give the backbone's features.
    """
    model = Pooled(backbone).eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        with traced():
            program = torch.export.export(model, (backbone.example(2),), dynamic_shapes=({0: batch},))
        program._example_inputs = None
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                torch.export.save(program, file)
            with open(temporary, "rb") as file:
                again = torch.export.load(file).module()
            x = emptied(backbone.example(5, seed=1))
            with torch.no_grad():
                refuse_difference(model(x), again(x), path)
    return path


def emptied(x: Tensor) -> Tensor:
    """The samples (B, C, *extent), the last two of them zeros in the last half and everywhere.

    Zeros are what fills up words and nodes and stands for members of a set that are missing, so that these are checked.
    """
    x = x.clone()
    x[-2, ..., x.shape[-1] // 2:], x[-1] = 0, 0
    return x


def refuse_difference(wanted: Tensor, got: Tensor, path: Path) -> None:
    """Insist that a stored form gives the backbone's features.

    Raises:
        UsageError: they differ by more than :data:`TOLERANCE`.
    """
    worst = float((wanted - got).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise UsageError(f"The exported model differs from the backbone by {worst:.2g}.", where=str(path))
