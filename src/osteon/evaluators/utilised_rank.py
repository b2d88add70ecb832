"""Utilised rank: how many directions of a layer's input and output the data really use.

Garg et al. 2024, "Revealing the Utilized Rank of Subspaces of Learning in Neural Networks", arXiv:2407.04797. The share
of variance, the treatment of convolutions and the factoring are our reading of the paper's summary; no code was found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.real_tokens import RealTokens
from osteon.parts.taps import taps

CARD = Card(
    kind="analysis",
    name="utilised_rank",
    papers=("Revealing the Utilized Rank of Subspaces of Learning in Neural Networks",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="no code was found: the share of the second moment, the treatment of convolutions by patches and the "
            "factoring are our reading of the paper's summary",
    rows=(311,),
    backbones=("tokens", "maps"),
    cost="1 forward per sample and an eigendecomposition a layer",
    switch="osteon analyse RUN SOURCE --only utilised_rank",
)


@dataclass(frozen=True)
class Utilisation:
    """Of one layer: directions used in its input and output, of how many; ``share`` = min(inputs, outputs) / full."""

    name: str
    inputs: int
    outputs: int
    width_in: int
    width_out: int

    @property
    def rank(self) -> int:
        """The utilised rank."""
        return min(self.inputs, self.outputs)

    @property
    def share(self) -> float:
        """Utilised rank over full rank, in (0, 1]."""
        return self.rank / min(self.width_in, self.width_out)


def second_moments(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sum of outer products of the inputs of every linear layer and convolution, not centred: name -> (m, m) float64.

    The rows of a convolution's input are its patches. Grouped convolutions and padding are left out.
    """
    layers = {n: m for n, m in network.named_modules() if _rows_of(m) is not None}
    if not layers:
        raise UsageError("The network has no linear layer and no convolution.", where="utilised_rank")
    moments: dict[str, Tensor] = {}
    with torch.no_grad(), taps(network, list(layers), kind="input") as seen:
        for x in batches:
            seen.clear()
            network(x)
            real = RealTokens(network, x)
            for name, layer in layers.items():
                if name not in seen:
                    continue
                rows = _patches(layer, seen[name], real).double()
                gram = rows.T @ rows
                moments[name] = moments[name] + gram if name in moments else gram
    return moments


def utilised_rank(network: nn.Module, batches: Iterable[Tensor], energy: float = 0.99) -> list[Utilisation]:
    """Utilised rank of every layer that ran.

    Args:
        network: in eval mode.
        batches: inputs of the network; use many more samples (tokens, patches) than a layer is wide.
        energy: share of the second moment the used directions hold.
    """
    if not 0 < energy <= 1:
        raise UsageError(f"The energy is a share in (0, 1], not {energy}.", where="energy")
    modules = dict(network.named_modules())
    out = []
    for name, moment in second_moments(network, batches).items():
        weight = _weight(modules[name])
        out.append(Utilisation(name, len(used(moment, energy).T), len(used(weight.T @ moment @ weight, energy).T),
                               *weight.shape))
    return out


def used(moment: Tensor, energy: float) -> Tensor:
    """Orthonormal directions holding ``energy`` of a second moment (m, m), strongest first: (m, k), k >= 1."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.flip(0).clamp(min=0)
    held = values.cumsum(0) / values.sum().clamp(min=1e-300)
    if energy >= 1:  # all but rounding
        count = int((values > values.max() * len(values) * 1e-12).sum())
    else:
        count = int((held < energy).sum()) + 1
    count = min(count, len(values)) if values[0] > 0 else 1
    return vectors.flip(1)[:, :max(1, count)]


def project(weight: Tensor, moment: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """Two thin matrices (m, r), (r, n) whose product is the weight (m, n) between the used subspaces.

    Rows are inputs: T = S W. The product keeps the outputs on the data up to the variance left out.
    """
    weight = weight.double()
    sources, targets = used(moment, energy), used(weight.T @ moment @ weight, energy)
    core = sources.T @ weight @ targets
    if sources.shape[1] <= targets.shape[1]:
        return sources, core @ targets.T
    return sources @ core, targets.T


def _rows_of(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return module
    return None


def _weight(module: nn.Module) -> Tensor:
    """(inputs, outputs) float64."""
    weight = module.weight.detach()  # type: ignore[union-attr, operator]
    return weight.flatten(1).T.double()  # type: ignore[union-attr, operator]


def _patches(module: nn.Module, x: Tensor, real: RealTokens) -> Tensor:
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str):
            raise UsageError("Convolutions with named padding are not supported.", where="utilised_rank")
        return F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride  # type: ignore[arg-type]
                        ).transpose(1, 2).flatten(0, 1)
    return real.take(x)
