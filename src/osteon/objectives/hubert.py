"""Masked prediction of discrete units: hide spans of time and say which cluster each hidden piece belongs to.

Hsu et al. 2021 (HuBERT), and "Exploring Prediction Targets in Masked Pre-Training for Speech Foundation Models" 2024,
arXiv:2409.10788: units of several layers of a teacher at once, and residual units from coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._teacher import network_of
from osteon.parts.codebooks import Codebooks
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import denormalise, make_views, normalise
from osteon.views.masks import Grid, hidden_count, hidden_indices, lowest
from osteon.views.pipeline import standardise

CARD = Card(
    kind="objective",
    name="hubert",
    papers=("Exploring Prediction Targets in Masked Pre-Training for Speech Foundation Models",
            "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units"),
    modalities=("sound", "series"),
    differs="Pieces are the backbone's patches of a spectrogram or series, not frames of a convolutional stem on the "
    "wave. The first round clusters the patches themselves (of a log-mel spectrogram: as near to each other as their "
    "full cepstra, whose transform is orthonormal), not 39 MFCCs. The shares and lengths of spans, numbers of clusters "
    "and stages are ours: those of the target study could not be checked. All targets weigh alike. Clusters are fitted "
    "on a fixed draw of training samples before the first step. Hidden pieces alone count, as in HuBERT's default.",
    rows=(145,),
    backbones=("tokens",),
    cost="1 forward on all tokens, and 1 of the teacher without gradient from the second round on",
)


def span_mask(grid: Grid, ratio: float, draws: Draws, span: int) -> Tensor:
    """Hide spans of time, all bands of it, until ``round(ratio * steps)`` steps are hidden: (B, N) bool.

    Spans begin anywhere and may overlap or reach over an edge; the last one is cut to the exact count.

    Args:
        grid: sides of the grid of tokens; the last is time.
        ratio: share of steps.
        draws: the stream.
        span: steps of a span.
    """
    steps = grid[-1]
    rank = F.max_pool1d(draws.rand(steps + span - 1)[:, None], span, stride=1)[:, 0]  # best of the spans over a step
    hidden = lowest(-rank, hidden_count(ratio, steps))
    return hidden[:, None].expand(-1, math.prod(grid[:-1]), -1).flatten(1)


class UnitHead(nn.Module):
    """Scores of codes: the cosine of a projected token and each code's vector, over a temperature. (..., D) -> (..., K)

    Args:
        dim: D.
        codes: K.
        width: of the projection.
        temperature: of the softmax (0.1 in HuBERT).
    """

    def __init__(self, dim: int, codes: int, width: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.codes = nn.Parameter(torch.empty(codes, width))
        nn.init.normal_(self.codes)
        self.temperature = temperature

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        return F.normalize(self.project(tokens), dim=-1) @ F.normalize(self.codes, dim=-1).T / self.temperature


class HuBERT(Objective):
    """Predict the units of hidden spans, one head a target; targets are layers x stages.

    In the first round units are clusters of the patches; in later ones of the layers of a network an earlier round
    left. Before the first step the clusters are fitted on training samples; a loop that does not call ``prepare`` fits
    them on its first batch.

    Args:
        backbone: network to train.
        data: what the data look like.
        clusters: codes of each codebook.
        stages: codebooks of each feature, each of what the ones before leave over; 1 = plain k-means.
        teacher: run folder whose network's layers are clustered; empty = the patches themselves are.
        layers: blocks of the teacher whose outputs are targets (negative: from the end).
        ratio: share of time that is hidden.
        span: tokens of a hidden span of time.
        fit_tokens: at least so many patches are clustered, where there are as many.
        head_dim: width of the heads; 0 = the backbone's.
        crop_min: smallest share of time in the random span; 1 = the whole sample.
    """

    additive: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adamw", "lr": 5e-4, "betas": (0.9, 0.98), "weight_decay": 0.01, "warmup": 0.08,
                        "clip": 10.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, clusters: int = 100, stages: int = 1, teacher: str = "",
                 layers: tuple[int, ...] = (-1,), ratio: float = 0.5, span: int = 3, fit_tokens: int = 20000,
                 head_dim: int = 0, crop_min: float = 1.0) -> None:
        super().__init__(backbone, data)
        self.grid = backbone.grid(*data.extent)
        if not 0 < hidden_count(ratio, self.grid[-1]) < self.grid[-1] or not 1 <= span <= self.grid[-1]:
            raise UsageError(f"Of {self.grid[-1]} steps of time {hidden_count(ratio, self.grid[-1])} would be hidden, "
                             f"in spans of {span}: some must be hidden and some shown.", where="ratio, span")
        if clusters < 2 or stages < 1 or not layers or fit_tokens < clusters:
            raise UsageError("There are at least 2 clusters, 1 stage and 1 layer, and as many tokens to fit as "
                             "clusters.", where="hubert")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.ratio, self.span, self.fit_tokens = ratio, span, fit_tokens
        self.layers, self.teacher = tuple(layers) if teacher else (0,), None
        width = backbone.shown_width
        if teacher:
            network, meta = network_of(teacher, data, "teacher")
            if network.grid(*data.extent) != self.grid:
                raise UsageError("The teacher cuts samples in other pieces than the backbone.", where="teacher",
                                 fix=f"Set backbone.patch={network.stride}.")
            self.teacher, width = network, network.token_dim
            known = meta["data"]
            self.taught = replace(data, mean=tuple(known["mean"]), std=tuple(known["std"]))
            self.features(torch.zeros(1, data.channels, *data.extent))  # layers that it lacks are refused here
        self.books = nn.ModuleList(Codebooks(width, clusters, stages) for _ in self.layers)
        self.mask_token = nn.Parameter(torch.zeros(backbone.token_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.heads = nn.ModuleList(UnitHead(backbone.token_dim, clusters, head_dim or backbone.token_dim)
                                   for _ in range(len(self.layers) * stages))
        what = f"blocks {', '.join(map(str, layers))} of {teacher}" if teacher else "the patches themselves"
        self.notes = [*self.views.notes, f"targets: {clusters} clusters x {stages} stages of {what}"]

    @torch.no_grad()
    def features(self, x: Tensor) -> list[Tensor]:
        """What is clustered, of views (B, C, *extent): one (B, N, D) a layer, in float32."""
        if self.teacher is None:
            return [self.backbone.shown(x).float()]
        net = self.teacher
        with torch.autocast(x.device.type, enabled=False):
            tokens = net.stem(standardise(denormalise(x.float(), self.data), self.taught)) + net.positions(self.grid)
            special = net.prefix(len(x))
            _, seen = net.trunk(torch.cat([special, tokens], 1), collect=self.layers)
        return [cast(Tensor, layer)[:, special.shape[1]:].float() for layer in seen]

    def prepare(self, batch: Callable[[Sequence[int]], Batch], samples: int, seed: int) -> None:
        """Fit the clusters on whole training samples, in an order drawn from the seed."""
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        rows = order[:-(-self.fit_tokens // math.prod(self.grid))].sort().values.tolist()
        home = self.mask_token.device
        found = [self.features(normalise(batch(rows[i:i + 64])[self.data.modality].to(home), self.data))
                 for i in range(0, len(rows), 64)]
        self.fit([torch.cat(parts) for parts in zip(*found, strict=True)], seed)

    def fit(self, features: Sequence[Tensor], seed: int) -> None:
        """Fit every layer's codebooks on its features (M, N, D)."""
        for book, values in zip(self.books, features, strict=True):
            cast(Codebooks, book).fit(values.flatten(0, 1), seed)

    def units(self, x: Tensor, draws: Draws) -> Tensor:
        """Labels of all tokens of views, (B, N, targets) int64, without gradient."""
        if not bool(cast(Codebooks, self.books[0]).fitted):
            whole = draws.take(self.data.modality, torch.arange(draws.total)).to(x.device)
            self.fit(self.features(normalise(whole, self.data)), draws.step.seed)
        return torch.cat([book(values) for book, values in zip(self.books, self.features(x), strict=True)], -1)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample and target the loss and the share of right answers, (B, targets), over hidden tokens."""
        x = self.views(batch[self.data.modality], draws)[0].x
        mask = span_mask(self.grid, self.ratio, draws.fork("mask"), self.span)
        seen = self.backbone(x, mask=mask, mask_token=self.mask_token)
        places = hidden_indices(mask)[..., None]  # (B, M, 1)
        hidden = seen.tokens.gather(1, places.expand(-1, -1, seen.tokens.shape[-1]))
        wanted = self.units(x, draws)
        wanted = wanted.gather(1, places.expand(-1, -1, wanted.shape[-1]))
        loss, hits = list[Tensor](), list[Tensor]()
        for target, head in enumerate(self.heads):
            logits, unit = head(hidden).float(), wanted[..., target]
            loss.append(F.cross_entropy(logits.transpose(1, 2), unit, reduction="none").mean(1))
            hits.append((logits.argmax(-1) == unit).float().mean(1))
        return {"loss": torch.stack(loss, 1), "hits": torch.stack(hits, 1), "features": seen.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over targets and samples."""
        loss, hits = encoded["loss"].mean(0), encoded["hits"].mean(0)
        parts = {f"{name}/{i}": value.detach() for name, values in (("loss", loss), ("accuracy", hits))
                 for i, value in enumerate(values)}
        return Loss(loss.mean(), parts)

    def target_report(self) -> list[dict[str, float]]:
        """Of every target the layer, the stage, and the share of the features' variance its codes leave unexplained."""
        return [{"layer": layer, "stage": stage, "unexplained": float(left)}
                for layer, book in zip(self.layers, self.books, strict=True)
                for stage, left in enumerate(cast(Codebooks, book).unexplained)]

    def companions(self) -> list[nn.Module]:
        """The teacher."""
        return [] if self.teacher is None else [self.teacher]

    def train(self, mode: bool = True) -> HuBERT:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self
