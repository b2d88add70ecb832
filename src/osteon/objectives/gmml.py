"""GMML: spoil groups of connected pixels by noise or by another image, and rebuild them with a light head.

Atito et al. 2022, arXiv:2205.14986, section 3. No teacher and no large batch, meant for small data sets.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.taps import matching, taps
from osteon.parts.targets import unpatchify
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views
from osteon.views.masks import rectangles

CARD = Card(
    kind="objective",
    name="gmml",
    papers=("GMML is All you Need",),
    modalities=("image",),
    differs="The share spoilt is drawn once a step and view for the whole batch and met exactly, where the authors "
    "draw it for every image and overshoot; blocks lie inside the image instead of being cut at its border. The donor "
    "of a sample is never the sample itself and serves all of its views. Hue jitters by 0.025, not 0.01. Up to 32 "
    "pixels crops are at least a fifth of the image, not a twentieth, and never blurred. Filling with a block of the "
    "same image is not offered.",
    rows=(397,),
    backbones=("tokens",),
    cost="2 forwards per image on all tokens and a light head",
)


def read_blocks(depth: int) -> list[int]:
    """Blocks whose outputs are averaged, counted from 0: those at 1/2, 2/3, 5/6 and the end (6, 8, 10, 12 of 12)."""
    return sorted({-(-depth * sixths // 6) - 1 for sixths in (3, 4, 5, 6)})


def spoil(clean: Tensor, filler: Tensor, mask: Tensor) -> Tensor:
    """Pixels of ``filler`` where the mask is True, of ``clean`` elsewhere: (B, C, H, W) twice, (B, H, W) bool."""
    return torch.where(mask[:, None], filler, clean)


def absolute_error(prediction: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
    """Absolute error, mean over channels, summed over each sample's spoilt pixels: (B, C, H, W) twice -> (B,)."""
    error = (prediction.float() - clean.float()).abs().mean(1)
    return error.masked_fill(~mask, 0).sum((1, 2))


class GMML(Objective):
    """Group masked model learning: rebuild spoilt blocks of each of several views from what is around them.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio_min: smallest share of pixels replaced by the fill.
        ratio_max: largest share of pixels replaced by the fill; uniform between the two at every step.
        alien: share of pixels replaced by those of another image of the batch.
        alien_chance: probability that a view is spoilt by another image rather than by the fill.
        fill: ``noise`` (standard normal) or ``zeros`` (the data's mean).
        max_side: largest side of a block as a share of the image's.
        align: blocks begin and end at multiples of this many pixels; 1 = anywhere, so that patches are spoilt in part.
        n_views: views of an image, each rebuilt by itself.
        crop_min: smallest area share of a crop; None = 0.05, or 0.2 up to 32 pixels.
        flip: mirror views left-right at random; None = images are, other samples are not.
    """

    # The authors' 5e-4 per 256 images; a square root of the batch for small ones.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 5e-4, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.04,
                        "weight_decay_end": 0.4, "warmup": 0.05, "clip": 3.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio_min: float = 0.5, ratio_max: float = 0.75,
                 alien: float = 0.3, alien_chance: float = 0.5, fill: Literal["noise", "zeros"] = "noise",
                 max_side: float = 0.3, align: int = 1, n_views: int = 2, crop_min: float | None = None,
                 flip: bool | None = None) -> None:
        super().__init__(backbone, data)
        if not 0 < ratio_min <= ratio_max < 1 or not 0 < alien < 1:
            raise UsageError("The shares of spoilt pixels must lie between 0 and 1, the smallest first.",
                             where=f"ratio_min={ratio_min}, ratio_max={ratio_max}, alien={alien}")
        if align < 1 or data.size % align:
            raise UsageError(f"Blocks aligned to {align} pixels do not tile images of {data.size}.", where="align",
                             fix="Give a divisor of the size, e.g. 1 or the patch.")
        if fill not in ("noise", "zeros"):
            raise UsageError(f"There is no fill {fill!r}.", where="fill", fix="Give noise or zeros.")
        small = data.size <= 32
        self.views = make_views("simclr", data, strength=0.125, jitter=0.3, grey=0.0, blur=0.0 if small else 0.1,
                                min_scale=crop_min or (0.2 if small else 0.05), flip=flip, n_views=n_views)
        self.notes = list(self.views.notes)
        self.ratio, self.alien, self.alien_chance = (ratio_min, ratio_max), alien, alien_chance
        self.fill, self.max_side, self.align, self.patch = fill, max_side, align, backbone.stride
        self.blocks, self.norm = _layers(backbone)
        width = backbone.token_dim
        hidden = [part for _ in range(3) for part in (nn.Linear(width, width), nn.GELU())]
        self.head = nn.Sequential(*hidden, nn.Linear(width, backbone.shown_width))

    def groups(self, ratio: float, draws: Draws) -> Tensor:
        """Connected groups of pixels, the same number in every sample: (B, H, W) bool, True = spoilt."""
        cells = self.data.size // self.align
        mask = rectangles((cells, cells), ratio, draws, max_side=self.max_side).view(-1, cells, cells)
        return mask.repeat_interleave(self.align, 1).repeat_interleave(self.align, 2)

    def corrupt(self, clean: Tensor, donor: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Spoil each sample by the fill or by its donor, never by both: -> (B, C, H, W), (B, H, W) bool."""
        share = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * float(draws.fork("share").shared_rand(1))
        foreign = draws.fork("which").rand() < self.alien_chance
        mask = torch.where(foreign[:, None, None], self.groups(self.alien, draws.fork("alien")),
                           self.groups(share, draws.fork("groups")))
        fill = draws.fork("fill").randn(*clean.shape[1:]) if self.fill == "noise" else torch.zeros_like(clean)
        return spoil(clean, torch.where(foreign[:, None, None, None], donor, fill), mask), mask

    def triples(self, batch: Batch, draws: Draws) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Clean view, spoilt view and mask for every view."""
        clean = [view.x for view in self.views(batch[self.data.modality], draws)]
        shift = (draws.fork("donor").rand().cpu() * max(1, draws.total - 1)).long() + 1
        rows = (draws.rows.cpu() + shift) % draws.total
        if len(draws.rows) == draws.total:  # the donors' views are at hand
            place = torch.empty(draws.total, dtype=torch.int64).scatter_(0, draws.rows.cpu(), torch.arange(draws.total))
            donors = [x[place[rows].to(x.device)] for x in clean]
        else:
            donors = [view.x for view in self.views(draws.take(self.data.modality, rows), draws.at(rows))]
        return [(x, *self.corrupt(x, donor, draws.fork(f"spoil{i}")))
                for i, (x, donor) in enumerate(zip(clean, donors, strict=True))]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuilt images (B, C, H, W) from the normed mean of several blocks' patch tokens, and pooled features."""
        with taps(self.backbone, self.blocks, detach=False) as seen:
            features = self.backbone(x)
        mean = torch.stack([seen[name] for name in self.blocks]).mean(0)
        tokens = self.backbone.get_submodule(self.norm)(mean)[:, -features.grid[0] * features.grid[1]:]
        return unpatchify(self.head(tokens), self.patch, features.grid), features.pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample the error summed over spoilt pixels of all views, ``"error"`` (B,), and their number."""
        triples = self.triples(batch, draws)
        clean, spoilt, mask = (torch.cat(parts) for parts in zip(*triples, strict=True))
        prediction, pooled = self.predict(spoilt)
        error = absolute_error(prediction, clean, mask)
        count = mask.sum((1, 2)).float()
        return {"error": error.view(len(triples), -1).sum(0), "spoilt": count.view(len(triples), -1).sum(0),
                "features": pooled[: len(triples[0][0])].detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over all spoilt pixels of the batch."""
        total = encoded["error"].sum() / encoded["spoilt"].sum()
        return Loss(total, {"reconstruction": total.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """First view, the same spoilt, and with the prediction in place of what was spoilt."""
        clean, spoilt, mask = self.triples(batch, Draws.of(batch, step))[0]
        prediction, _ = self.predict(spoilt)
        return clean, spoilt, spoil(clean, prediction, mask)


def _layers(backbone: Backbone) -> tuple[list[str], str]:
    """Names of the blocks that are read, and of the norm that follows the last block."""
    modules = dict(backbone.named_modules())
    root = "model." if "model.blocks.0" in modules else ""
    if f"{root}blocks.0" not in modules or f"{root}norm" not in modules:
        raise UsageError(f"GMML reads inner blocks, which {backbone.name} does not show.", where="backbone",
                         fix="Choose osteon's vit_* or a plain ViT of timm.")
    names = list(matching(backbone, [f"{root}blocks.*"]))
    return [names[i] for i in read_blocks(len(names))], f"{root}norm"
