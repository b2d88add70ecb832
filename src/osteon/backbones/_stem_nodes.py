"""How a graph becomes tokens: one a node, from its own features alone; what surrounds it is its place.

Places: random-walk encoding (Dwivedi et al. 2022, arXiv:2110.07875, section 3.3) and closeness to the root.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from osteon.backbones._stems import Stem, present_or_none
from osteon.core.errors import UsageError
from osteon.parts.graphs import (
    adjacency_of,
    assemble,
    check_samples,
    closeness,
    example_rings,
    features_of,
    present_of,
    scaled_cosine_error,
    walk_diagonals,
)


class NodeEmbed(Stem):
    """A token a node, a linear map of its features: (B, F + N, N) -> (B, N, D).

    No feature of a neighbour enters, so that a hidden node cannot be read off the others' tokens. What a token shows
    are the features of its node. Its error is the mean square, of binary features the scaled cosine error with gamma 2
    (one in a hundred words of a document is there: squares would reward predicting none).

    Args:
        channels: F + N.
        extent: (N,).
        dim: width of a token.
        features: F.
        root: whether the first node is the one the sample is about; its distance then belongs to the places.
        binary: whether features are 0 or 1.
        walks: lengths of walks whose return is part of the place.
    """

    def __init__(self, channels: int, extent: Sequence[int], dim: int, *, features: int = 0, root: bool = False,
                 binary: bool = False, walks: int = 8) -> None:
        super().__init__()
        self.features = features or channels - extent[0]
        if len(extent) != 1 or self.features < 1 or channels != self.features + extent[0] or walks < 0 or not (
                walks or root):
            raise UsageError(f"{channels} channels of {' x '.join(map(str, extent))} nodes are no graphs with "
                             f"{self.features} features.", where="stem nodes",
                             fix="Channels are the features and a row of the adjacency for each node.")
        self.stride, self.shown_width, self.own_error = 1, self.features, True
        self.root, self.binary, self.walks = root, binary, walks
        self.place_width = walks + root
        self.proj = nn.Linear(self.features, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return self.proj(self.shown(x))

    def shown(self, x: Tensor) -> Tensor:
        """The features: (B, F + N, N) -> (B, N, F)."""
        check_samples(x, self.features, "stem nodes")
        return features_of(x)

    def places(self, x: Tensor) -> Tensor:
        """Returns of random walks, and closeness to the root where there is one: (B, N, place_width)."""
        adjacency = adjacency_of(x)
        parts = [walk_diagonals(adjacency, self.walks)] if self.walks else []
        if self.root:
            parts.append(closeness(adjacency)[..., None])
        return torch.cat(parts, -1)

    def present(self, x: Tensor) -> Tensor | None:
        """Nodes whose diagonal is above 0."""
        return present_or_none(present_of(x))

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Mean square, or the scaled cosine error of binary features: (B, N, F) twice -> (B, N) float32."""
        if self.binary:
            return scaled_cosine_error(prediction, shown)
        return (prediction.float() - shown.float()).square().mean(-1)

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions as features; those of binary ones, whose size says nothing, with 1 for the likeliest."""
        if not self.binary:
            return prediction
        likely = prediction.clamp(min=0)
        return likely / likely.amax(-1, keepdim=True).clamp(min=1e-12)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Graphs like ``x`` with other features."""
        return assemble(shown.to(x.dtype), adjacency_of(x), present_of(x))

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Rings of nodes with normal features: no node only fills up."""
        return example_rings(shape, self.features, draws)

    def note(self) -> str:
        """What a token is."""
        return (f"tokens: one a node, from its {self.features} features; its place is told by returns of "
                f"{self.walks} random walks" + (" and the distance from the root" if self.root else ""))

    def initialise(self) -> None:
        """Xavier-uniform, and a bias that is not zero.

        A node without features at a place of zeros would be a token of zeros, whose gradient every layer norm
        multiplies by a thousand; where all that is visible of a sample is padding, that reaches the loss.
        """
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.normal_(self.proj.bias, std=self.proj.out_features**-0.5)


STEM = NodeEmbed
