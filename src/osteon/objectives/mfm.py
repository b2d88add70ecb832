"""MFM: take low or high frequencies out of an image and predict the spectrum that is missing.

Xie et al. 2023, arXiv:2206.07706, section 3. The image is filtered, not cut, so that any network can be trained,
convolutional ones included, without a mask token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm
from osteon.parts.objective import Objective
from osteon.parts.targets import unpatchify
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import denormalise, make_views
from osteon.views.pipeline import standardise

CARD = Card(
    kind="objective",
    name="mfm",
    papers=("Masked Frequency Modeling for Self-Supervised Visual Pre-Training",),
    modalities=("image",),
    differs="The radius follows the image (16 at 224 px, at least 1.5). Filtered values are clamped to [0, 1] as in "
    "the authors' code, but not for data of arbitrary range, where that has no meaning. BatchNorm's running "
    "statistics are those of unfiltered images, by a forward of their own, so that features can be read without "
    "fine-tuning; the weights are not touched by that. The paper's other tasks (super-resolution, deblurring, "
    "denoising) are not offered.",
    rows=(172,),
    cost="1 forward per image (1 more without gradient under BatchNorm) and three Fourier transforms",
)


def disc(size: tuple[int, int], radius: float) -> Tensor:
    """(H, W) bool over a centred spectrum, True where the distance from the zero frequency is below ``radius``.

    The zero frequency lies at (H // 2, W // 2); the circle itself belongs to the outside.
    """
    y = torch.arange(size[0])[:, None] - size[0] // 2
    x = torch.arange(size[1])[None, :] - size[1] // 2
    return (x.square() + y.square()) < radius**2


def keep_band(x: Tensor, band: Tensor) -> Tensor:
    """Images with only the frequencies of a band: (B, C, H, W), (B, H, W) bool over centred spectra -> (B, C, H, W)."""
    spectrum = torch.fft.fft2(x.float())
    return torch.fft.ifft2(spectrum * torch.fft.ifftshift(band, dim=(-2, -1))[:, None]).real


def spectral_distance(prediction: Tensor, target: Tensor, gamma: float = 1.0) -> Tensor:
    """Distance in the complex plane at every frequency, to the power ``gamma``: (B, C, H, W), centred.

    The transform is orthonormal, so that distances are in units of the images' values.
    """
    difference = torch.fft.fft2(prediction.float() - target.float(), norm="ortho")
    distance = (difference.real.square() + difference.imag.square() + 1e-12).sqrt() ** gamma
    return torch.fft.fftshift(distance, dim=(-2, -1))


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[bool]:
    """Leave BatchNorm's running statistics as they are for the while; yields whether there are any."""
    norms = [m for m in network.modules() if isinstance(m, BatchNorm | nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield bool(norms)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum  # type: ignore[assignment]


class MFM(Objective):
    """Masked frequency modelling: filter the image, restore the frequencies taken out.

    Args:
        backbone: network to train.
        data: what the data look like.
        radius: radius of the disc of low frequencies in bins of the spectrum; 0 = 16 at 224 px and in proportion, at
            least 1.5.
        low_pass: share of samples that keep the disc and lose the high frequencies, the others lose the disc; None =
            0.5 for Transformers and 0.3 for convolutional networks, as in the paper.
        gamma: power of the distance.
        clamp: cut filtered values to [0, 1] before normalisation; None = unless the data have an arbitrary range.
        crop_min: smallest area share of the random crop.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    # The paper's 3e-4 per 512 images is 1.2e-3 at its batch of 2048; a square root of the batch for short runs.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.2e-3, "lr_per": 2048, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05, "clip": 3.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, radius: float = 0.0, low_pass: float | None = None,
                 gamma: float = 1.0, clamp: bool | None = None, crop_min: float = 0.2,
                 flip: bool | None = None) -> None:
        super().__init__(backbone, data)
        self.patch = backbone.stride
        if data.size % self.patch:
            raise UsageError(f"The last map (stride {self.patch}) does not tile images of {data.size} pixels.",
                             where="backbone", fix="Set backbone.stride or patch, or size.")
        self.views = make_views("crop_flip", data, flip=flip, min_scale=crop_min)
        self.notes = list(self.views.notes)
        self.radius = radius or max(1.5, 16 / 224 * data.size)
        if not radius:
            self.notes.append(f"radius = {self.radius:.2f}: 16 of 224 pixels, at least 1.5")
        self.low_pass = low_pass if low_pass is not None else 0.5 if backbone.kind == "tokens" else 0.3
        self.clamp = clamp if clamp is not None else data.scale != 1
        self.gamma = gamma
        low = disc((data.size, data.size), self.radius)
        if self.radius < 0 or low.all():  # the zero frequency lies in every disc
            raise UsageError(f"A disc of radius {self.radius:g} leaves nothing to predict in images of {data.size} "
                             "pixels.", where="radius", fix=f"Give a radius between 1 and {data.size // 2}.")
        self.register_buffer("low", low, persistent=False)
        self.head = nn.Linear(backbone.token_dim, backbone.shown_width)

    low: Tensor

    def band(self, draws: Draws) -> Tensor:
        """Frequencies each sample keeps: (B, H, W) bool, the disc or what lies outside it."""
        keeps_low = draws.rand() < self.low_pass
        return self.low ^ ~keeps_low[:, None, None]

    def corrupt(self, x: Tensor, band: Tensor) -> Tensor:
        """Filter normalised images in the range of the stored values, where the clamp belongs."""
        filtered = keep_band(denormalise(x, self.data), band)
        return standardise(filtered.clamp(0, 1) if self.clamp else filtered, self.data)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Restored images (B, C, H, W), normalised, and pooled features (B, D): one linear map a token."""
        features = self.backbone(x)
        return unpatchify(self.head(features.tokens), self.patch, features.grid), features.pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample the distances summed over the frequencies taken out, ``"error"`` (B,), and their number."""
        x = self.views(batch[self.data.modality], draws)[0].x
        band = self.band(draws.fork("band"))
        with statistics_kept(self.backbone) as normed:
            prediction, pooled = self.predict(self.corrupt(x, band))
        if normed and self.training:  # filtered images are far from those the network will be used on
            with torch.no_grad():
                self.backbone(x)
        distance = spectral_distance(prediction, x, self.gamma).mean(1)
        return {"error": distance.masked_fill(band, 0).sum((1, 2)), "hidden": (~band).sum((1, 2)).float(),
                "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over all frequencies taken out of the batch, so that samples weigh by their number, as in the code."""
        total = encoded["error"].sum() / encoded["hidden"].sum()
        return Loss(total, {"spectrum": total.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, filtered input, and the input's kept frequencies completed by predicted ones."""
        draws = Draws.of(batch, step)
        x = self.views(batch[self.data.modality], draws)[0].x
        band = self.band(draws.fork("band"))
        corrupted = self.corrupt(x, band)
        prediction, _ = self.predict(corrupted)
        return x, corrupted, keep_band(x, band) + keep_band(prediction, ~band)
