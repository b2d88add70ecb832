"""GraphMAE: hide the features of half the nodes and rebuild them from the neighbours, by the cosine alone.

Hou et al. 2022, KDD, section 3: masking with re-masking before a one-layer decoder, and the scaled cosine error.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.backbones.gnn import GNN
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import hidden_mean
from osteon.parts.graph_layers import CONVS, make_conv
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of, scaled_cosine_error
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="graphmae",
    papers=("GraphMAE: Self-Supervised Masked Graph Autoencoders",),
    modalities=("graph",),
    differs="The loss is the mean over each sample's masked nodes, then over samples. The second mask is the constant "
    "zero of the authors' code, not a learned vector. The decoder is a layer of the backbone's own kind unless another "
    "is asked for. Codes of all layers side by side, an option of the authors' code, are left out.",
    rows=(396,),
    backbones=("nodes",),
    cost="1 forward per sample and one more layer",
)


def mask_nodes(present: Tensor, ratio: float, replace: float, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Which nodes are masked, which of these get another node's features, and whose.

    Args:
        present: (B, N) bool, nodes that exist.
        ratio: share of the nodes that is masked, rounded, at least one.
        replace: share of the masked nodes, rounded down, that gets the features of a random node.
        draws: the stream.

    Returns:
        (B, N) bool masked, (B, N) bool replaced, and (B, N) int64 nodes drawn uniformly from those that exist.
    """
    nodes, count = present.shape[1], present.sum(1)
    noise = draws.fork("mask").rand(nodes).to(present.device).masked_fill(~present, 2.0)
    rank = noise.argsort(1).argsort(1)
    masked = torch.minimum((ratio * count).round().long().clamp(min=1), count)
    swapped = (replace * masked + 1e-6).long()
    place = (draws.fork("donor").rand(nodes).to(present.device) * count[:, None]).long().clamp(max=nodes - 1)
    order = torch.where(present, 0, 1).argsort(dim=1, stable=True)  # nodes that exist first
    return rank < masked[:, None], rank < swapped[:, None], order.gather(1, place)


class GraphMAE(Objective):
    """Masked graph autoencoder: the structure is given, features are rebuilt.

    Args:
        backbone: graph network to train.
        data: what the data look like.
        ratio: share of the nodes that is masked.
        replace: share of the masked nodes that gets a random node's features instead of the mask; they are rebuilt too.
        gamma: exponent of the scaled cosine error; 1 to 3 in the paper.
        decoder: kind of the decoder's layer, ``gcn``, ``gin`` or ``gat``; ``auto`` = that of the backbone.
        drop_edge: probability with which an edge is hidden from the encoder; the decoder sees it.
        crop_min: smallest share of the nodes in a random part; 1 = the whole sample, as in the paper.
    """

    additive: ClassVar[bool] = True
    # The authors' settings for Cora; nothing is said of batches, there is one graph.
    recipe: ClassVar = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 2e-4, "warmup": 0.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.5, replace: float = 0.05,
                 gamma: float = 3.0, decoder: Literal["auto", "gcn", "gin", "gat"] = "auto", drop_edge: float = 0.0,
                 crop_min: float = 1.0) -> None:
        super().__init__(backbone, data)
        if backbone.kind != "nodes":
            raise UsageError(f"GraphMAE passes features along edges, which {backbone.name} does not.",
                             where="backbone", fix="Choose a graph network, e.g. gcn_mini.")
        if not (0 < ratio <= 1 and 0 <= replace <= 1 and gamma >= 1 and 0 <= drop_edge < 1):
            raise UsageError(f"ratio={ratio}, replace={replace}, gamma={gamma}, drop_edge={drop_edge}: shares lie in "
                             "[0, 1], some nodes are masked, and gamma is at least 1.", where="graphmae")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.ratio, self.replace, self.gamma, self.drop_edge = ratio, replace, gamma, drop_edge
        kind = str(backbone.options["conv"]) if decoder == "auto" else decoder
        if kind not in CONVS:
            raise UsageError(f"There is no decoder '{kind}'.", where="decoder", fix=f"Give {', '.join(CONVS)} or auto.")
        self.notes = [*self.views.notes, f"decoder: one layer of {kind} "
                      f"({'rule: as the backbone' if decoder == 'auto' else 'as asked'})"]
        self.mask_token = nn.Parameter(torch.zeros(backbone.shown_width))
        self.bridge = nn.Linear(backbone.token_dim, backbone.token_dim, bias=False)
        self.decoder = make_conv(kind, backbone.token_dim, backbone.shown_width)

    def predict(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions (B, N, F), which nodes are masked (B, N), and pooled features (B, D)."""
        features, adjacency, present = features_of(x), adjacency_of(x), present_of(x)
        masked, swapped, donor = mask_nodes(present, self.ratio, self.replace, draws)
        borrowed = features.gather(1, donor[..., None].expand_as(features))
        seen = torch.where(masked[..., None], self.mask_token.to(features.dtype), features)
        seen = torch.where(swapped[..., None], borrowed, seen)
        edges = adjacency
        if self.drop_edge:
            noise = draws.fork("edges").rand(*adjacency.shape[1:]).to(adjacency.device).triu(1)
            edges = adjacency * (noise + noise.transpose(1, 2) >= self.drop_edge)
        network = cast(GNN, self.backbone)
        tokens = network.encode(seen, edges, present)
        codes = self.bridge(tokens).masked_fill(masked[..., None], 0.0)
        prediction = self.decoder(codes, self.decoder.mixing(adjacency, present))
        return prediction, masked, network.summed_up(tokens, present)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample error ``"loss"`` (B,) and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        prediction, masked, pooled = self.predict(x, draws.fork("nodes"))
        error = scaled_cosine_error(prediction, features_of(x), self.gamma)
        return {"loss": hidden_mean(error, masked), "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"scaled_cosine": total.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Graphs, graphs with masked nodes without features, and graphs with what is predicted there."""
        draws = Draws.of(batch, step)
        x = self.views(batch[self.data.modality], draws)[0].x
        prediction, masked, _ = self.predict(x, draws.fork("nodes"))
        features, adjacency, present = features_of(x), adjacency_of(x), present_of(x)
        hole = masked[..., None]
        return (x, assemble(features.masked_fill(hole, 0.0), adjacency, present),
                assemble(torch.where(hole, prediction.to(x.dtype), features), adjacency, present))
