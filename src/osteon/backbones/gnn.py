"""Graph networks: every layer mixes what a node holds with what its neighbours hold, on the dense adjacency.

GCN: Kipf & Welling 2017, arXiv:1609.02907, equation 2. GIN: Xu et al. 2019, arXiv:1810.00826, equation 4.1. GAT:
Velickovic et al. 2018, arXiv:1710.10903, equations 1 to 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from osteon.backbones._base import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.graph_layers import CONVS, make_conv
from osteon.parts.graphs import adjacency_of, check_samples, example_rings, features_of, present_of
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="gnn",
    papers=("Semi-Supervised Classification with Graph Convolutional Networks",
            "How Powerful are Graph Neural Networks?", "Graph Attention Networks",
            "ResVGAE: Going Deeper with Residual Modules for Link Prediction"),
    modalities=("graph",),
    differs="Dense adjacency (one large graph is multiplied as a sparse matrix). PReLU after every layer, the last one "
    "included, as in GraphMAE's encoders. GIN's perceptron has layer normalisation where the paper has batch "
    "normalisation, whose statistics padding would enter, and a whole graph is the mean of its nodes after the last "
    "layer, not the sums after every one. Weights of edges multiply GAT's attention before it is normalised. Residual "
    "modules (ResVGAE) are an option, with weights of their own or tied over depth.",
    rows=(252,),
    backbones=("nodes",),
    cost="grows with the square of the number of nodes of a sample",
)

#: Name -> kind of layer, width, number of layers.
SIZES: dict[str, dict[str, Any]] = {
    f"{conv}_{size}": {"conv": conv, "dim": dim, "depth": depth + (conv == "gin")}
    for conv in CONVS for size, dim, depth in (("tiny", 64, 2), ("mini", 128, 2), ("small", 256, 2), ("base", 512, 3))}


class GNN(Backbone):
    """Graph network.

    Args:
        name: the name it was built by.
        channels: number of channels F + N of a sample.
        size: number of nodes N of a sample; others work, since no weight depends on it.
        conv: kind of layer: ``gcn``, ``gin`` or ``gat``.
        dim: width of a node after every layer.
        depth: number of layers, and so of steps that a node sees.
        heads: attention heads of ``gat``; must divide ``dim``.
        residual: add what came in after every layer but the first.
        tied: all layers but the first share their weights.
        activation: after every layer.
        dropout: probability with which an input of a layer is 0 while training.
        pool: what ``pooled`` is: the mean of the nodes, or the first one (the node a sample is about).
        stem: how samples are read; ``nodes`` alone.
        stem_options: ``features`` F of a node; the rest is the Transformer's.
    """

    kind = "nodes"

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], conv: Literal["gcn", "gin", "gat"],
                 dim: int, depth: int, heads: int = 4, residual: bool = False, tied: bool = False,
                 activation: Literal["prelu", "relu", "elu"] = "prelu", dropout: float = 0.0,
                 pool: Literal["mean", "first"] = "mean", stem: Literal["nodes"] = "nodes",
                 stem_options: Mapping[str, Any] | None = None) -> None:
        extent = (size,) if isinstance(size, int) else tuple(size)
        self.features = int((stem_options or {}).get("features", 0)) or channels - extent[0]
        options: dict[str, Any] = {
            "conv": conv, "dim": dim, "depth": depth, "heads": heads, "residual": residual, "tied": tied,
            "activation": activation, "dropout": dropout, "pool": pool, "stem": stem,
            "stem_options": {**(stem_options or {}), "features": self.features}}
        _check_options(name, options, channels, extent)
        super().__init__(name, channels=channels, size=extent, options=options)
        self.dim = self.token_dim = dim
        self.stride, self.pool, self.residual, self.tied, self.depth = 1, pool, residual, tied, depth
        count = min(depth, 2) if tied else depth
        self.layers = nn.ModuleList(make_conv(conv, dim if i else self.features, dim, heads) for i in range(count))
        self.activations = nn.ModuleList(_activation(activation) for _ in range(count))
        self.dropout = nn.Dropout(dropout)
        self.notes.append(f"{depth} layers of {conv}: a node sees {depth} steps far"
                          + (", with residual connections" if residual else "") + (", tied" if tied else ""))

    def grid(self, *extent: int) -> tuple[int, ...]:
        """A token a node."""
        return extent

    def shown(self, x: Tensor) -> Tensor:
        """The features: (B, F + N, N) -> (B, N, F)."""
        check_samples(x, self.features, self.name)
        return features_of(x)

    def present(self, x: Tensor) -> Tensor | None:
        """Nodes whose diagonal is above 0, or None where all are."""
        there = present_of(x)
        return None if bool(there.all()) else there

    def example(self, count: int, *, seed: int = 0) -> Tensor:
        """Rings of nodes; see :meth:`Backbone.example`."""
        draws = torch.Generator().manual_seed(seed)
        return example_rings((count, self.channels, *self.extent), self.features, draws)

    @property
    def shown_width(self) -> int:
        """Features of a node."""
        return self.features

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, F + N, N) -> Features, nodes in their order as tokens; those that do not exist are zero.

        Args:
            x: samples.
            keep: refused: a node left out leaves its neighbours another graph.
            mask: (B, N) bool, True = the features are replaced before anything is passed on; edges stay.
            mask_token: (F,) what replaces them; zeros when None.
        """
        if keep is not None:
            raise self._refuse("keep: without a node its neighbours have another graph",
                               "Use mask, or a Transformer such as vit_tiny.")
        h, adjacency, there = self.shown(x), adjacency_of(x), present_of(x)
        if mask is not None:
            self._check_mask(mask, len(x), (x.shape[2],))
            if mask_token is not None and mask_token.shape != (self.features,):
                raise self._refuse(f"a mask token of shape {tuple(mask_token.shape)}: it stands for the "
                                   f"{self.features} features of a node", "Choose a Transformer such as vit_tiny.")
            token = h.new_zeros(()) if mask_token is None else mask_token.to(h.dtype)
            h = torch.where((mask & there)[..., None], token, h)
        tokens = self.encode(h, adjacency, there)
        return Features(pooled=self.summed_up(tokens, there), tokens=tokens, grid=(x.shape[2],))

    def encode(self, h: Tensor, adjacency: Tensor, there: Tensor) -> Tensor:
        """All layers: features (B, N, F), adjacency (B, N, N), existing nodes (B, N) -> (B, N, D)."""
        mixing = cast(Any, self.layers[0]).mixing(adjacency, there)
        for i in range(self.depth):
            at = min(i, len(self.layers) - 1)
            out = self.activations[at](self.layers[at](self.dropout(h), mixing))
            h = (out + h if self.residual and i else out) * there[..., None]
        return h

    def summed_up(self, tokens: Tensor, there: Tensor) -> Tensor:
        """The first node, or the mean of those that exist: (B, N, D), (B, N) -> (B, D)."""
        if self.pool == "first":
            return tokens[:, 0]
        return tokens.sum(1) / there.sum(1, keepdim=True).clamp(min=1)


def _activation(name: str) -> nn.Module:
    return {"prelu": nn.PReLU, "relu": nn.ReLU, "elu": nn.ELU}[name]()


def _check_options(name: str, options: dict[str, Any], channels: int, extent: tuple[int, ...]) -> None:
    features = options["stem_options"]["features"]
    if len(extent) != 1 or features < 1 or channels != features + extent[0]:
        raise UsageError(f"{name} takes graphs, not samples of {channels} channels and {' x '.join(map(str, extent))}.",
                         where="backbone", fix="Channels are the features and a row of the adjacency for each node; "
                         "for other data choose a ViT, e.g. vit_tiny.")
    if min(options["dim"], options["depth"], options["heads"]) < 1 or (
            options["conv"] == "gat" and options["dim"] % options["heads"]):
        raise UsageError(f"dim ({options['dim']}), depth and heads ({options['heads']}) are at least 1, and heads of "
                         "gat divide dim.", where=name)
    if not 0 <= options["dropout"] < 1:
        raise UsageError("dropout lies in [0, 1).", where=name)
    for key, allowed in (("conv", tuple(CONVS)), ("pool", ("mean", "first")), ("activation", ("prelu", "relu", "elu")),
                         ("stem", ("nodes",))):
        if options[key] not in allowed:
            raise UsageError(f"{key} must be one of {', '.join(allowed)}, not {options[key]!r}.", where=name)
