"""What tests of compressors share: small networks, seeded images, and training without a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Compressor
from osteon.parts.objective import Objective
from osteon.parts.types import DataSpec, Step

SPEC = DataSpec("image", 3, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 255.0)
VIT: dict[str, Any] = {"dim": 32, "depth": 4, "heads": 4}
#: how small each method makes which unit, and the options that keep its test quick
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "structured_pruning": ("params=0.6", {}), "int8": ("bytes=0.7", {}), "pela": ("params=0.6", {"augment": "none"}),
    "trp": ("params=0.7", {"every": 2, "augment": "none"}), "eora": ("bytes=0.6", {"group": 8}),
    "zero_tprune": ("flops=0.75", {}), "ssld": ("params=0.5", {"clusters": 4, "augment": "none"}),
    "poa": ("params=0.6", {"prototypes": "6"})}


def network(kind: str = "tokens") -> Backbone:
    """A small ViT or ResNet with seeded random weights."""
    torch.manual_seed(0)
    if kind == "maps":
        return build_backbone("resnet_tiny", channels=3, size=16, widths=(8, 16, 16)).eval()
    return build_backbone("vit_tiny", channels=3, size=16, **VIT).eval()


def calibration(count: int = 24, *, labels: bool = False) -> Calibration:
    """Smooth random pictures."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    stored = (torch.nn.functional.interpolate(coarse, size=16, mode="bilinear") * 255).to(torch.uint8)

    def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"image": stored[torch.from_numpy(rows)], "index": torch.from_numpy(rows)}

    return Calibration(lambda rows: (stored[torch.from_numpy(rows)].float() / 255 - 0.5) / 0.25, count, SPEC,
                       batch_size=8, stored=batch, labels=np.arange(count) % 3 if labels else None)


def fit_on(data: Calibration, steps: int = 6, lr: float = 1e-3) -> Any:
    """A plain training loop."""
    def fit(objective: Objective, recipe: Mapping[str, Any]) -> None:
        assert data.stored is not None
        objective.train()
        optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=lr)
        for i in range(steps):
            step = Step(i, steps)
            rows = np.random.default_rng(i).permutation(len(data))[:8]
            optimizer.zero_grad()
            objective(data.stored(rows), step).total.backward()
            optimizer.step()
            objective.after_step(step)
    return fit


def build(name: str, **options: Any) -> Compressor:
    """A compressor with the options of its case."""
    return registry.build("compressor", name, **{**CASES[name][1], **options})
