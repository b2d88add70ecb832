"""The analysis of ``osteon analyse`` that takes parts of a sample away from a network and looks what it misses."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones.resnet import ResNet
from osteon.evaluators import layer_masking
from osteon.verbs._analysis_context import Context, Finding, Section

#: modalities whose tokens at one place show the same part of every sample
PLACED = ("image", "sound", "series", "table", "volume", "video")


def masking(c: Context) -> Section:
    """Whether layer masking takes regions away better than a fill colour, and where the network looks."""
    out = Section("layer_masking", "Taking regions away")
    network = c.model.backbone
    if network.kind == "tokens":
        return leaving_out(c, out)
    if not isinstance(network, ResNet):
        out.skipped = "layer masking follows osteon's ResNet, and Transformers leave tokens out"
        return out
    x = c.images(np.arange(min(128, len(c.data))))
    g = torch.Generator().manual_seed(c.seed)
    cells = max(2, min(4, x.shape[-1] // 2))
    hidden = torch.rand(len(x), cells, cells, generator=g) < 0.25
    hidden.flatten(1)[hidden.flatten(1).all(1)] = False
    visible = ~F.interpolate(hidden[:, None].float(), size=x.shape[-2:], mode="nearest")[:, 0].bool()
    low = torch.tensor([-m / s for m, s in zip(c.model.spec.mean, c.model.spec.std, strict=True)]).view(1, -1, 1, 1)
    with torch.inference_mode():
        whole = network.eval()(x).pooled
        taken = layer_masking.masked_features(network, x, visible)
        foreign = torch.where(visible[:, None], x, torch.full_like(x, 9.0))
        other = layer_masking.masked_features(network, foreign, visible)
        kept = {"layer masking": taken, "mean fill": network(x * visible[:, None]).pooled,
                "black fill": network(torch.where(visible[:, None], x, low.expand_as(x))).pooled}
    alike = {k: float(F.cosine_similarity(v - whole.mean(0), whole - whole.mean(0)).mean()) for k, v in kept.items()}
    out.columns, out.rows = ["A quarter hidden by", "Cosine with the whole image's feature"], [
        [k, f"{v:.3f}"] for k, v in alike.items()]
    worst = float((taken - other).abs().max())
    out.findings = [
        Finding("change of the features by what lies under the mask", worst, worst <= 1e-5, "<= 1e-5",
                "exact by construction: Balasubramanian & Feizi (2023), section 3"),
        Finding("likeness to the whole, layer masking less mean fill", alike["layer masking"] - alike["mean fill"],
                None, "above 0 in the paper", "Balasubramanian & Feizi (2023), section 4")]

    def likeness(images: Tensor, seen: Tensor) -> Tensor:
        return F.cosine_similarity(layer_masking.masked_features(network, images, seen), whole[:len(images)])

    where = layer_masking.attribution(likeness, x[:32], cells).mean(0)
    out.notes.append("what the feature loses without a region, mean over 32 images, row by row: "
                     + "; ".join(" ".join(f"{v:.3f}" for v in row) for row in where.tolist()))
    return out


def leaving_out(c: Context, out: Section) -> Section:
    """What a Transformer's features lose without some of their tokens, and which of them matter."""
    network, x = c.model.backbone.eval(), c.images(np.arange(min(128, len(c.data))))
    if getattr(network, "pool", "") == "first":
        out.skipped = "the feature is that of one node, which is not to be left out"
        return out
    with torch.inference_mode():
        found = network(x)
        whole, count = found.pooled, math.prod(found.grid)
        order = torch.rand(len(x), count, generator=torch.Generator().manual_seed(c.seed)).argsort(1)
        keep, gone = order[:, :count - count // 4].sort(1).values, order[:, count - count // 4:]
        hidden = torch.zeros(len(x), count, dtype=torch.bool).scatter(1, gone, True)
        kept = {"leaving its tokens out": network(x, keep=keep).pooled,
                "tokens of zeros": network(x, mask=hidden).pooled}
    alike = {k: float(F.cosine_similarity(v - whole.mean(0), whole - whole.mean(0)).mean()) for k, v in kept.items()}
    out.columns, out.rows = ["A quarter hidden by", "Cosine with the whole sample's feature"], [
        [k, f"{v:.3f}"] for k, v in alike.items()]
    first, second = alike.values()
    out.findings = [Finding("likeness to the whole, tokens left out less tokens of zeros", first - second, None,
                            "above 0 where zeros mislead", "Jain et al. (2022), Missingness Bias in Model Debugging")]
    if c.model.spec.modality not in PLACED:
        out.notes.append("which tokens matter is not averaged: a place means nothing across samples of "
                         f"{c.model.spec.modality}")
        return out
    some, cell = x[:32], layer_masking.token_cells(found.grid)

    def likeness(stay: Tensor) -> Tensor:
        return F.cosine_similarity(network(some, keep=stay).pooled, whole[:len(some)])

    lost = layer_masking.token_attribution(likeness, cell, len(some)).mean(0)
    out.notes.append(f"what the feature loses without a part of the {' x '.join(map(str, found.grid))} tokens, mean "
                     f"over {len(some)} samples, in their order: " + " ".join(f"{v:.3f}" for v in lost.tolist()))
    return out
