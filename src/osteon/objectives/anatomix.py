"""anatomix: two random renderings of one random label map, whose features agree wherever the label does.

Dey et al. 2025, "Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis", sections 3 and
4; the numbers are those of the authors' released code (its first version of pre-training).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.heads import mlp
from osteon.parts.label_maps import compose, number_labels, usual_shapes
from osteon.parts.losses.supcon import supcon
from osteon.parts.objective import Objective
from osteon.parts.taps import taps
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.views.pipeline import check_shape, standardise
from osteon.views.rendering import Rendering

CARD = Card(
    kind="objective",
    name="anatomix",
    papers=("Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis",),
    modalities=("image", "volume"),
    differs="Shapes are generated (ellipsoids, boxes, diamonds, bent, stretched, hollow), where the paper's templates "
    "are real organs of TotalSegmentator: the paper sees no real intensity but real anatomy, this sees neither, unless "
    "you give segmentations (`segments=true`), which are then rendered as they are, not taken apart. Label maps are "
    "composed at every step instead of once; fewer shapes where sides have under 64 cells. How often each fault "
    "strikes and their order are the paper's, their strengths are ours; images are also rendered, as slices of solid "
    "shapes. Renderings are standardised like the data, so that real samples meet the same scale. 768 cells are drawn "
    "of a sample of 24,576 or more, else one in 32, at least 32, or all a layer has. Layers are every level of a "
    "U-Net's two ways, or a network's levels, and not the paper's 18. The paper takes one volume a step; of several, "
    "each is contrasted within itself. No weights by rarity, as in the paper.",
    rows=(284,),
    backbones=("maps",),
    cost="2 forwards a sample, and making and rendering label maps",
)

#: Where the statistics of the data are those of label numbers, renderings are standardised by these instead.
MEAN, STD = 0.5, 0.25


def shrink(labels: Tensor, sides: Sequence[int]) -> Tensor:
    """Labels at the middles of coarser cells, the nearest ones: (b, *extent) -> (b, *sides)."""
    for axis, side in enumerate(sides, 1):
        have = labels.shape[axis]
        middle = ((torch.arange(side, device=labels.device) + 0.5) * have / side).long()
        labels = labels.index_select(axis, middle)
    return labels


def pick(maps: Tensor, cells: Tensor) -> Tensor:
    """Features of some cells: (b, D, *sides), (b, n) raster numbers -> (b, n, D)."""
    flat = maps.flatten(2).transpose(1, 2)
    return flat.gather(1, cells[..., None].expand(-1, -1, flat.shape[2]))


class Anatomix(Objective):
    """Cells of one label attract, in both renderings; all other cells of the same sample repel.

    The values of the samples are never looked at, unless they are segmentations (``segments=true`` in reading volumes):
    then their labels are rendered.

    Args:
        backbone: network to train.
        data: what the data look like: their sides and channels are those of the renderings.
        temperature: T of the softmax.
        samples: cells of each layer and rendering, the same ones in both; 0 = 768, or a 32nd of a sample's where that
            is less, at least 32.
        out: width of the heads' three layers.
        shapes: most shapes of a label map, half of them the fewest; 0 = 40 of 64 cells a side, or fewer.
        layers: which maps are compared: ``auto``, ``levels``, or patterns of names of layers, comma-separated.
    """

    # The paper's 2e-4 at one volume a step.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 3.2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.01,
                        "warmup": 0.05}
    additive: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, data: DataSpec, *, temperature: float = 0.07, samples: int = 0,
                 out: int = 256, shapes: int = 0, layers: str = "auto") -> None:
        super().__init__(backbone, data)
        if temperature <= 0 or samples < 0 or samples == 1 or out < 1 or shapes < 0 or shapes == 1:
            raise UsageError(f"temperature={temperature}, samples={samples}, out={out}, shapes={shapes}: temperature "
                             "and out are positive, samples and shapes 2 or more, or 0 for the rule.", where="anatomix")
        self.temperature, self.rendering = temperature, Rendering()
        self.samples = samples or min(768, max(32, math.prod(data.extent) // 32))
        self.least, self.most = (shapes // 2, shapes) if shapes else usual_shapes(data.extent)
        self.segments = bool(data.traits.get("segments"))
        dense = getattr(backbone, "dense_layers", ())
        self.layers = [] if layers == "levels" else list(dense) if layers == "auto" else layers.split(",")
        shown = self._shapes_of_maps()
        self.used = [number for number, (_, sides) in enumerate(shown) if sides.numel() > 1]
        if not self.used:
            raise UsageError("No map of the network has two cells to tell apart.", where=f"samples of {data.extent}",
                             fix="Use larger samples, or a network of a smaller stride.")
        self.heads = nn.ModuleList(mlp((shown[number][0], out, out, out), norm="none") for number in self.used)
        self.notes = [f"samples are segmentations: their labels are rendered, standardised by {MEAN} and {STD}"
                      if self.segments else f"label maps: {self.least} to {self.most} generated shapes, composed anew "
                      "at every step; the values of the samples are never looked at",
                      f"{self.samples} cells of a layer: {'as asked' if samples else 'rule: one in 32, 32 to 768'}"]

    def _shapes_of_maps(self) -> list[tuple[int, torch.Size]]:
        """Width and sides of every map, told by one pass of an empty sample."""
        training, like = self.backbone.training, next(self.backbone.parameters())
        self.backbone.eval()
        with torch.no_grad():
            maps, _ = self._maps(torch.zeros(1, self.data.channels, *self.data.extent, device=like.device))
        self.backbone.train(training)
        return [(m.shape[1], m.shape[2:]) for m in maps]

    def _maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """All maps (B, D, *sides) of a forward pass, and the pooled features."""
        if not self.layers:
            found: Features = self.backbone(x)
            last = found.tokens.transpose(1, 2).unflatten(2, found.grid)
            return found.levels or [last], found.pooled
        with taps(self.backbone, self.layers, detach=False) as seen:
            pooled = self.backbone(x).pooled
        return [seen[name] for name in seen], pooled

    def labels_of(self, values: Tensor, draws: Draws) -> Tensor:
        """Label maps (b, *extent) int64, composed, or those of the samples (b, 1, *extent) where these are some."""
        if self.segments:
            return number_labels(values[:, 0].long())
        return compose(draws, self.data.extent, least=self.least, most=self.most)

    def render(self, labels: Tensor, draws: Draws) -> Tensor:
        """One rendering of label maps, standardised: (b, C, *extent)."""
        return standardise(self.rendering.render(labels, draws, self.data.channels), self.exported_data())

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The contrast of every sample in every layer: ``"contrast"`` (b, layers)."""
        values = batch[self.data.modality]
        check_shape(values, self.data)
        labels = self.labels_of(values, draws.fork("map")).to(values.device)
        views = torch.cat([self.render(labels, draws.fork(f"view{i}")) for i in range(2)])
        maps, pooled = self._maps(views)
        contrast = []
        for head, number in zip(self.heads, self.used, strict=True):
            sides = tuple(maps[number].shape[2:])
            chance = draws.fork(f"cells{sides}").rand(*sides).flatten(1)  # the same cells in layers of one size
            cells = chance.topk(min(self.samples, chance.shape[1]), 1).indices
            label = shrink(labels, sides).flatten(1).gather(1, cells).repeat(1, 2)
            z = torch.cat(head(pick(maps[number], cells.repeat(2, 1))).chunk(2), 1)  # (b, 2 n, P)
            with torch.autocast(z.device.type, enabled=False):
                contrast.append(torch.stack([supcon(*pair, self.temperature) for pair in zip(z, label, strict=True)]))
        return {"features": pooled.detach()[:len(values)], "contrast": torch.stack(contrast, 1)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples and layers."""
        layers = encoded["contrast"].mean(0)
        return Loss(layers.mean(), {"finest": layers[0].detach(), "coarsest": layers[-1].detach()})

    def exported_data(self) -> DataSpec:
        """Data of intensities, also where segmentations were rendered."""
        if not self.segments:
            return self.data
        many, traits = self.data.channels, {k: v for k, v in self.data.traits.items() if k != "segments"}
        return replace(self.data, mean=(MEAN,) * many, std=(STD,) * many, traits=traits)
