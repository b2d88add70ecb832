"""ResVGAE: a deep variational graph autoencoder with residual modules, which predicts the edges of a graph.

Nallbani et al. (ResVGAE), on the variational graph autoencoder of Kipf & Welling 2016, arXiv:1611.07308, section 1.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from osteon.backbones import Backbone
from osteon.backbones.gnn import GNN
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.graph_layers import make_conv
from osteon.parts.graphs import adjacency_of, features_of, present_of
from osteon.parts.links import link_loss
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="resvgae",
    papers=("ResVGAE: Going Deeper with Residual Modules for Link Prediction", "Variational Graph Auto-Encoders"),
    modalities=("graph",),
    differs="Residual modules are the backbone's: a graph network of depth D + 1 with residual=true has D of them, "
    "with weights of their own as the paper says (tied=true shares them, as the authors' code does); the released code "
    "trains the model without its variational part, this one does not. The divergence is a mean over nodes, divided "
    "by the number of nodes once more, as there. As many pairs as there are edges stand against them, drawn without "
    "replacement. The encoder sees the edges that it predicts, as there, so scores are for held-out ones alone.",
    rows=(252,),
    backbones=("nodes",),
    cost="1 forward per sample, and all pairs of its nodes",
)


def divergence(mean: Tensor, log_std: Tensor, present: Tensor) -> Tensor:
    """KL divergence from the standard normal, mean over nodes: (B, N, L), (B, N, L), (B, N) -> (B,)."""
    each = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
    return (each * present).sum(1) / present.sum(1).clamp(min=1)


def edge_weight(adjacency: Tensor, present: Tensor) -> Tensor:
    """``N^2 / (2 (N^2 - sum of A))``, both directions of an edge counted: (B, N, N), (B, N) -> (B,)."""
    square = present.sum(1).float().square()
    return square / (2 * (square - (adjacency != 0).sum((1, 2)))).clamp(min=1)


class ResVGAE(Objective):
    """Variational graph autoencoder: codes of nodes are drawn, and an edge is as likely as their inner product says.

    Args:
        backbone: graph network to train; residual=true makes it the paper's.
        data: what the data look like.
        latent: width of a node's code.
        variational: draw codes and weigh their divergence; false = the plain graph autoencoder.
        drop_edge: probability with which an edge is hidden from the encoder; it is predicted all the same.
    """

    additive: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adam", "lr": 1e-2, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"}

    def __init__(self, backbone: Backbone, data: DataSpec, *, latent: int = 16, variational: bool = True,
                 drop_edge: float = 0.0) -> None:
        super().__init__(backbone, data)
        if backbone.kind != "nodes":
            raise UsageError(f"ResVGAE passes features along edges, which {backbone.name} does not.",
                             where="backbone", fix="Choose a graph network, e.g. gcn_mini.")
        if latent < 1 or not 0 <= drop_edge < 1:
            raise UsageError(f"latent={latent} and drop_edge={drop_edge} are impossible.", where="resvgae")
        self.views = make_views("none", data)
        self.variational, self.drop_edge = variational, drop_edge
        self.mean = make_conv("gcn", backbone.token_dim, latent)
        self.log_std = make_conv("gcn", backbone.token_dim, latent) if variational else None
        modules = int(backbone.options["depth"]) - 1
        self.notes = list(self.views.notes)
        if backbone.options["residual"]:
            self.notes.append(f"{modules} residual modules after the first layer")
        else:
            self.notes.append("no residual modules (backbone.residual=true puts them in, with backbone.depth)")

    def codes(self, features: Tensor, adjacency: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mean and logarithm of the deviation of nodes' codes (B, N, L), and their tokens (B, N, D)."""
        tokens = cast(GNN, self.backbone).encode(features, adjacency, present)
        mixing = self.mean.mixing(adjacency, present)
        spread = None if self.log_std is None else self.log_std(tokens, mixing).clamp(max=10)
        return self.mean(tokens, mixing), spread, tokens

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample ``"links"`` and ``"divergence"`` (B,), both with their weights, and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        features, adjacency, present = features_of(x), adjacency_of(x), present_of(x)
        nodes = x.shape[2]
        seen = adjacency
        if self.drop_edge:
            noise = draws.fork("edges").rand(nodes, nodes).to(x.device).triu(1)
            seen = adjacency * (noise + noise.transpose(1, 2) >= self.drop_edge)
        mean, spread, tokens = self.codes(features, seen, present)
        z, kl = mean, mean.new_zeros(len(x))
        if spread is not None:
            z = mean + draws.fork("code").randn(nodes, mean.shape[2]).to(mean) * spread.exp()
            kl = divergence(mean, spread, present) / present.sum(1).clamp(min=1)
        pairs = draws.fork("pairs").rand(nodes, nodes).to(x.device)
        links = edge_weight(adjacency, present) * link_loss(z @ z.transpose(1, 2), adjacency, present, pairs)
        pooled = cast(GNN, self.backbone).summed_up(tokens, present)
        return {"links": links, "divergence": kl, "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """``c * cross-entropy + KL / N``, means over samples."""
        links, kl = encoded["links"].mean(), encoded["divergence"].mean()
        return Loss(links + kl, {"links": links.detach(), "divergence": kl.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Graphs, their nodes without edges, and as many of the likeliest edges as there are, from the mean codes."""
        x = self.views(batch[self.data.modality], Draws.of(batch, step))[0].x
        features, adjacency, present = features_of(x), adjacency_of(x), present_of(x)
        mean, _, _ = self.codes(features, adjacency, present)
        pairs = (present[:, None] & present[..., None]).triu(1)
        score = (mean @ mean.transpose(1, 2)).masked_fill(~pairs, -torch.inf).flatten(1)
        count = ((adjacency != 0).sum((1, 2)) // 2)[:, None]
        likely = ((score.argsort(1, descending=True).argsort(1) < count) & score.isfinite()).view(pairs.shape)
        made = (likely | likely.transpose(1, 2)).to(x.dtype)
        bare = torch.cat([features.transpose(1, 2), torch.diag_embed(present.to(x.dtype))], 1)
        drawn = torch.cat([features.transpose(1, 2), made + torch.diag_embed(present.to(x.dtype))], 1)
        return x, bare, drawn
