"""Look at what flows inside a network: outputs, inputs or attention of named layers, without writing a hook."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError, nearest


class Taps:
    """What the last forward pass left at each tapped layer, by the layer's name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._seen = list(names), dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        """The tensor at a layer."""
        if name in self._seen:
            return self._seen[name]
        if name in self._names:
            raise UsageError(f"The tapped layer {name!r} has not run yet.", where="taps", fix="Call the model first.")
        raise UsageError(f"The layer {name!r} is not tapped.{nearest(name, self._names)}", where="taps",
                         fix=f"Tapped: {', '.join(self._names)}.")

    def __iter__(self) -> Iterator[str]:
        """Names of the tapped layers, in the model's order."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many layers are tapped."""
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        """Whether the layer is tapped and has run."""
        return name in self._seen

    def clear(self) -> None:
        """Forget all tensors (the taps stay)."""
        self._seen.clear()


@contextmanager
def taps(model: nn.Module, layers: str | Sequence[str], kind: Literal["output", "input", "attention"] = "output",
         detach: bool = True) -> Iterator[Taps]:
    """Collect activations of layers: ``with taps(model, "blocks.*") as t: model(x)``, then ``t["blocks.3"]``.

    Every forward pass replaces the tensors of the one before. The tensors stay available after the block.

    Args:
        model: any module.
        layers: names as in ``model.named_modules()``, or patterns: ``*`` matches within one component of a name,
            ``**`` across components, ``?`` one character, ``[..]`` a set.
        kind: a layer's output (of several, the first tensor), its first tensor input, or the weights of the attention
            in it, (B, heads, M, M), computed beside the forward pass from the same input.
        detach: give tensors without gradient.

    Raises:
        UsageError: a pattern matches no layer, or a layer holds no attention, or more than one.
    """
    found = matching(model, [layers] if isinstance(layers, str) else layers)
    result = Taps(list(found))
    handles = []

    def keep(name: str, tensor: Tensor) -> None:
        result._seen[name] = tensor.detach() if detach else tensor

    try:
        for name, module in found.items():
            if kind == "output":
                handles.append(module.register_forward_hook(_on_output(name, keep)))
            elif kind == "input":
                handles.append(module.register_forward_pre_hook(_on_input(name, keep), with_kwargs=True))
            elif kind == "attention":
                attention = _attention_in(name, module)
                handles.append(attention.register_forward_pre_hook(_on_attention(name, keep), with_kwargs=True))
            else:
                raise UsageError(f"kind must be output, input or attention, not {kind!r}.", where="taps")
        yield result
    finally:
        for handle in handles:
            handle.remove()


def matching(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Modules whose names match any of the patterns, in the model's order; a pattern without a match raises."""
    modules = dict(model.named_modules())
    wanted: set[str] = set()
    for pattern in patterns:
        expression = re.compile(_translate(pattern))
        hits = {name for name in modules if name and expression.fullmatch(name)}
        if not hits:
            raise UsageError(f"No layer is called {pattern!r}.{nearest(pattern, modules)}", where="layers",
                             fix="Names are those of model.named_modules().")
        wanted |= hits
    return {name: module for name, module in modules.items() if name in wanted}


def _translate(pattern: str) -> str:
    """A glob as a regular expression in which only ``**`` crosses a dot."""
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(special.get(p) or (p.replace("[!", "[^") if re.fullmatch(r"\[[^\]]+\]", p) else re.escape(p))
                   for p in parts)


def _first(values: Any) -> Tensor | None:
    """The first tensor in nested outputs or arguments."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return None
    return next((t for t in map(_first, values) if t is not None), None)


def _on_output(name: str, keep: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        keep(name, _need(_first(output), name, "puts out"))
    return hook


def _on_input(name: str, keep: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found = _first(args)
        keep(name, _need(_first(kwargs) if found is None else found, name, "takes in"))
    return hook


def _on_attention(name: str, keep: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if hasattr(module, "attention_weights"):
            keep(name, module.attention_weights(*args, **kwargs))
        else:
            keep(name, _fused_weights(module, *args, **kwargs))
    return hook


def _fused_weights(module: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention weights of a module laid out as in timm: one ``qkv`` projection, optional norms of q and k."""
    q, k, _ = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = module.q_norm(q) @ module.k_norm(k).transpose(-2, -1) * module.scale
    if is_causal:
        raise UsageError("Attention weights of causal timm models are not available.", where="taps")
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    return scores.softmax(-1)


def _need(tensor: Tensor | None, name: str, verb: str) -> Tensor:
    if tensor is None:
        raise UsageError(f"The layer {name!r} {verb} no tensor.", where="taps")
    return tensor


def _attention_in(name: str, module: nn.Module) -> nn.Module:
    """The one module at or below ``module`` that can give its weights: ours, or one laid out as timm's."""
    fused = ("qkv", "q_norm", "k_norm", "num_heads", "scale")
    able = [m for m in module.modules() if hasattr(m, "attention_weights") or all(hasattr(m, a) for a in fused)]
    if len(able) != 1:
        raise UsageError(f"The layer {name!r} holds {len(able) or 'no'} attention modules that can give their weights.",
                         where="taps", fix="Name one block of a ViT, e.g. blocks.3.")
    return able[0]
