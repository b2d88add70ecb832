"""A linear map or convolution as a frozen base plus a small trainable change of its weight."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.taps import matching

#: layers whose weight can be written as base plus change
Layer = nn.Linear | nn.Conv2d
_ATTENTION = re.compile(r"(?:^|\.)\w*(?:attn|attention)\w*\.")


class Change(nn.Module, ABC):
    """What is added to the weight, and perhaps the bias, of one layer. Its parameters train, its buffers do not."""

    @abstractmethod
    def weight_delta(self) -> Tensor:
        """The change of the weight, in the weight's own shape."""

    def bias_delta(self) -> Tensor | None:
        """The change of the bias, (out,); None where the bias stays."""
        return None

    def respond(self, x: Tensor, base: Layer) -> Tensor | None:
        """What the change of the weight adds to the layer's output for input ``x``.

        For changes with a cheaper way than building the whole changed weight; the others return None.
        """
        return None


class Reparam(nn.Module):
    """A frozen layer and a change: computes ``(W + dW) x + (b + db)``.

    ``weight`` and ``bias`` give the changed values, so that code which reads them instead of calling the layer
    (``nn.MultiheadAttention`` does, and the fast path of ``nn.TransformerEncoderLayer``) sees the change too.

    Args:
        base: the layer; its parameters stop training and are never written.
        change: what is added to its weight.
    """

    def __init__(self, base: Layer, change: Change) -> None:
        super().__init__()
        self.base, self.change = base.requires_grad_(False), change

    @property
    def weight(self) -> Tensor:
        """The changed weight, in the base's shape."""
        return self.base.weight + self.change.weight_delta().to(self.base.weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The changed bias, (out,) or None."""
        delta = self.change.bias_delta()
        if delta is None:
            return self.base.bias
        return delta if self.base.bias is None else self.base.bias + delta

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the change."""
        extra = self.change.respond(x, self.base)
        weight = self.weight if extra is None else self.base.weight
        out = run_layer(self.base, x, weight, self.bias)
        return out if extra is None else out + extra

    def delta(self) -> dict[str, Tensor]:
        """What trains, by name: copies of the change's parameters."""
        return {name: p.detach().clone() for name, p in self.change.named_parameters()}

    @torch.no_grad()
    def merge(self) -> Layer:
        """A plain layer of its own that computes the same."""
        bias = self.bias
        plain = copy.deepcopy(self.base)
        plain.weight = nn.Parameter(self.weight.detach().clone())
        plain.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return plain

    def cost(self) -> dict[str, int]:
        """Numbers that train, numbers the change keeps besides (bases, indices), and numbers of the frozen layer."""
        return {"trainable": sum(p.numel() for p in self.change.parameters()),
                "stored": sum(b.numel() for b in self.change.buffers()),
                "frozen": sum(p.numel() for p in self.base.parameters())}


def run_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's operation (stride, padding, groups) with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix (out, in) or, of a convolution, (out, in / groups * height * width)."""
    return weight.detach().flatten(1)


def select_layers(network: nn.Module, targets: str | Iterable[str], *, grouped: bool = True,
                  convolutions: bool | None = None) -> dict[str, Layer]:
    """The linear layers and convolutions that names or patterns stand for.

    Args:
        network: where to look.
        targets: comma-separated names or patterns as in :func:`osteon.parts.taps.taps` (``*`` within a component of
            the name, ``**`` across); ``auto``: every linear layer and, in networks that consist of convolutions, every
            ungrouped convolution but the first; ``attention``: the linear layers of attention.
        grouped: whether convolutions with groups may be among them; where not, naming one is an error.
        convolutions: whether ``auto`` takes convolutions; by default where the network has ungrouped ones beside the
            first and no attention.

    Raises:
        UsageError: nothing matches; the layers there are are named.
    """
    words = [w.strip() for w in (targets.split(",") if isinstance(targets, str) else targets) if w.strip()]
    layers = {name: m for name, m in network.named_modules() if name and isinstance(m, nn.Linear | nn.Conv2d)}
    if words in (["auto"], ["attention"]):
        found = _by_rule(layers, words[0], convolutions)
    else:
        try:
            hits = matching(network, words) if words else {}
        except UsageError as error:
            raise UsageError(error.what, where="targets", fix=_listing(layers)) from error
        found = {name: layers[name] for name in hits if name in layers}
    if not found:
        wanted = {"auto": "can be adapted", "attention": "belongs to an attention"}.get(
            ", ".join(words), f"matches {', '.join(words)!r}")
        raise UsageError(f"No {'linear layer' if convolutions is False else 'linear layer or convolution'} {wanted}.",
                         where="targets", fix=_listing(layers))
    odd = [name for name, m in found.items() if isinstance(m, nn.Conv2d) and m.groups > 1]
    if odd and not grouped:
        raise UsageError(f"This adapter cannot change the grouped convolution {odd[0]}.", where="targets",
                         fix="Leave grouped convolutions out, or use svfit, vectorfit, flora_tucker or bias.")
    return found


def _by_rule(layers: Mapping[str, Layer], rule: str, convolutions: bool | None) -> dict[str, Layer]:
    linear: dict[str, Layer] = {name: m for name, m in layers.items() if isinstance(m, nn.Linear)}
    attention = {name: m for name, m in linear.items() if _ATTENTION.search(name)}
    if rule == "attention":
        return attention
    maps = [name for name, m in layers.items() if isinstance(m, nn.Conv2d)][1:]
    wanted = not attention if convolutions is None else convolutions
    plain = {name for name in maps if wanted and getattr(layers[name], "groups", 1) == 1}
    return {name: m for name, m in layers.items() if name in linear or name in plain}


def _listing(layers: Iterable[str]) -> str:
    """The layers there are, with the numbers of blocks replaced by a star."""
    names = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in layers))
    return f"Layers there are: {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}." if names else \
        "The network has no linear layer and no convolution."


def reparametrise(network: nn.Module, layers: Mapping[str, Layer],
                  make: Callable[[str, Layer], Change]) -> dict[str, Reparam]:
    """Put a :class:`Reparam` in the place of each layer, everywhere a shared layer is used.

    Args:
        network: changed in place.
        layers: from :func:`select_layers`.
        make: (name, layer) -> its change.

    Raises:
        UsageError: the network carries changes already.
    """
    if any(isinstance(m, Reparam) for m in network.modules()):
        raise UsageError("The network is adapted already.", fix="Merge that adapter first.")
    made = {name: Reparam(layer, make(name, layer)) for name, layer in layers.items()}
    _swap(network, {id(r.base): r for r in made.values()})
    return made


@torch.no_grad()
def merged(network: nn.Module) -> nn.Module:
    """A copy of the network with every change folded into its layer."""
    plain = copy.deepcopy(network)
    _swap(plain, {id(m): m.merge() for m in plain.modules() if isinstance(m, Reparam)})
    return plain


def _swap(network: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Replace children by identity, at every place of a shared one; all are found before anything is replaced."""
    places = [(parent, name, child) for parent in network.modules() for name, child in parent._modules.items()
              if id(child) in new]
    for parent, name, child in places:
        setattr(parent, name, new[id(child)])
