"""A backbone as a program that plain PyTorch loads: ``torch.export.load(file).module()(images)`` gives features."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from osteon.core.atomic import atomic_path
from osteon.core.errors import UsageError

#: largest difference allowed between a network and its stored form, over the largest feature where that is above 1
TOLERANCE = 1e-5


class Pooled(nn.Module):
    """Only the pooled features, which is what a stored program returns."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) normalised -> (B, D)."""
        return self.backbone(x).pooled


def write_program(path: Path, backbone: nn.Module, channels: int, extent: tuple[int, ...]) -> Path:
    """Write a program with a free batch size and check it, read back, on another batch.

    It holds weights and a graph as text; no example inputs, whose format would be a pickle.

    Raises:
        UsageError: the program does not give the backbone's features.
    """
    model = Pooled(backbone).eval()
    example = torch.randn(2, channels, *extent, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        program._example_inputs = None
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                torch.export.save(program, file)
            with open(temporary, "rb") as file:
                again = torch.export.load(file).module()
            x = torch.randn(5, channels, *extent, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                refuse_difference(model(x), again(x), path)
    return path


def refuse_difference(wanted: Tensor, got: Tensor, path: Path) -> None:
    """Insist that a stored form gives the backbone's features.

    Raises:
        UsageError: they differ by more than :data:`TOLERANCE`.
    """
    worst = float((wanted - got).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise UsageError(f"The exported model differs from the backbone by {worst:.2g}.", where=str(path))
