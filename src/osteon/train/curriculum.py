"""The curriculum of a run, or why there can be none."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from osteon.core.errors import OsteonError, UsageError
from osteon.parts.efficient_train import EfficientTrain
from osteon.parts.objective import Objective
from osteon.train.settings import TrainSettings


def make_curriculum(objective: Objective, settings: TrainSettings) -> EfficientTrain | None:
    """What the settings ask for; None without a curriculum.

    Raises:
        UsageError: the objective, the modality or the backbone takes views of one size only.
    """
    if settings.curriculum == "none":
        return None
    made = EfficientTrain(sizes=settings.curriculum_sizes, magnitudes=settings.curriculum_magnitudes,
                          crop=cast(Any, settings.curriculum), multiple=math.lcm(2, objective.backbone.stride))
    fix = "Leave --set curriculum out, or choose simclr, mae, supervised..."
    if objective.data.modality != "image":
        raise UsageError(f"A curriculum of image sizes is not defined for {objective.data.modality}.",
                         where="--set curriculum", fix="Leave it out.")
    if not objective.any_size:
        raise UsageError("This objective takes views of one size only; a curriculum needs smaller ones first.",
                         where="--set curriculum", fix=fix)
    backbone = objective.backbone
    like = next(backbone.parameters())
    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        with torch.no_grad():
            for share in sorted(set(made.sizes)):
                sides = [made.rounded(full, share) for full in objective.data.extent]
                backbone(torch.zeros(1, backbone.channels, *sides, device=like.device, dtype=like.dtype))
    except (OsteonError, RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"{backbone.name} cannot take images of {' x '.join(map(str, sides))} pixels: "
                         f"{str(error).splitlines()[0]}", where="--set curriculum",
                         fix="Choose one of osteon's own backbones, e.g. vit_tiny or resnet_mini.") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return made
