"""Signal propagation: how mean and variance of activations move from block to block.

Brock, De & Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
arXiv:2101.08692, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.real_tokens import RealTokens
from osteon.parts.taps import taps

CARD = Card(
    kind="analysis",
    name="signal_propagation",
    papers=("Characterizing signal propagation to close the performance gap in unnormalized ResNets",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="also of Transformers, where a channel is a feature over all tokens; beside the untrained network on "
            "noise stands the trained one on its data; the scaled weight standardisation of the paper is not part "
            "of it",
    rows=(297,),
    backbones=("tokens", "maps"),
    cost="2 forwards of a few hundred samples",
    switch="osteon analyse RUN SOURCE --only signal_propagation",
)

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?\d*|stages)\.\d+$")


@dataclass(frozen=True)
class Signal:
    """After one block: mean squared channel mean, mean channel variance, and variance of what the block added.

    ``branch`` is None where the block changes the shape, so that the shortcut is not the input itself.
    """

    name: str
    squared_mean: float
    variance: float
    branch: float | None


def block_names(network: nn.Module) -> list[str]:
    """Names of the blocks in order: of ViTs, ResNets, and the usual timm and transformers models; innermost ones."""
    found = [name for name, _ in network.named_modules() if _BLOCK.search(name)]
    inner = [name for name in found if not any(other.startswith(name + ".") for other in found)]
    if not inner:
        raise UsageError("No blocks were recognised in this network.", where=type(network).__name__,
                         fix="Name them: blocks.0, layer1.0, stages.0 ...")
    return inner


@torch.no_grad()
def signal_propagation(network: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> list[Signal]:
    """One forward pass of ``x`` (B, C, *extent); the paper uses standard normal noise, at initialisation.

    Statistics are over samples and positions, padding left out; the squared mean is 0 and the variance 1 for a
    normalised signal.
    """
    names = block_names(network) if names is None else list(names)
    with taps(network, names) as out, taps(network, names, kind="input") as before:
        network(x)
    real = RealTokens(network, x)
    rows = []
    for name in names:
        after, entered = _channels(out[name], real), _channels(before[name], real)
        same = out[name].shape == before[name].shape
        rows.append(Signal(name, float(after.mean(0).square().mean()), float(after.var(0, correction=0).mean()),
                           float((after - entered).var(0, correction=0).mean()) if same else None))
    return rows


def _channels(x: Tensor, real: RealTokens) -> Tensor:
    """(B, C, H, W), (B, N, D) or (B, D) -> (rows, channels) float64; of tokens those that are there."""
    return x.double().movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() == 4 else real.take(x).double()
