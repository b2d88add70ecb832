"""First layers of a trained projection head as the last layers of the encoder: features are read behind them.

Chen et al. 2020 (SimCLRv2), arXiv:2006.10029, section 2: fine-tuning from a middle layer of the head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Features

#: where they lie in a network
NAME = "head_layers"
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def first_layers(head: nn.Module, count: int) -> nn.Sequential:
    """Copies of the first ``count`` layers of a head: each linear, with the norm and activation that follow it.

    Raises:
        UsageError: the head has fewer layers, or is no chain of layers.
    """
    parts = list(head) if isinstance(head, nn.Sequential) else []
    starts = [i for i, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if not starts or starts[0] != 0:
        raise UsageError("This head is no chain of linear layers.", where="head_layer", fix="Leave head_layer out.")
    if not 1 <= count <= len(starts):
        raise UsageError(f"The projection head has layers 1 to {len(starts)}; there is no layer {count}.",
                         where="head_layer", fix="0 reads the encoder's own features.")
    end = [*starts, len(parts)][count]
    return nn.Sequential(*(copy.deepcopy(part) for part in parts[:end]))


def put_behind(network: nn.Module, layers: nn.Sequential) -> dict[str, Any]:
    """Let a backbone's pooled features pass these layers, in place; its width becomes theirs.

    Returns:
        The change as an edit (see :mod:`osteon.parts.surgery`), from which the layers are rebuilt without weights.
    """
    described = [_described(layer) for layer in layers]
    if hasattr(network, NAME):
        raise UsageError("Layers of a head are behind this network already.", where="head_layer",
                         fix="Use the run they were taken from.")
    network.add_module(NAME, layers)
    network.dim = next(d["out"] for d in reversed(described) if "out" in d)  # type: ignore[assignment]
    network.register_forward_hook(_behind)
    return {"op": "head", "layers": described}


def rebuilt(layers: Sequence[Mapping[str, Any]]) -> nn.Sequential:
    """The layers of an edit, with fresh weights."""
    return nn.Sequential(*(_made(layer) for layer in layers))


def _behind(network: Any, _inputs: Any, found: Features) -> Features:
    return replace(found, pooled=getattr(network, NAME)(found.pooled))


def _described(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"kind": "linear", "in": layer.in_features, "out": layer.out_features, "bias": layer.bias is not None}
    if isinstance(layer, BatchNorm):
        return {"kind": "batch_norm", "width": layer.channels, "scale": layer.weight is not None,
                "shift": layer.bias is not None}
    if isinstance(layer, nn.LayerNorm):
        return {"kind": "layer_norm", "width": layer.normalized_shape[-1]}
    name = next((name for name, kind in _ACTIVATIONS.items() if type(layer) is kind), None)
    if name is None:
        raise UsageError(f"A head with {type(layer).__name__} cannot be stored.", where="head_layer",
                         fix="Leave head_layer out.")
    return {"kind": name}


def _made(layer: Mapping[str, Any]) -> nn.Module:
    kind = layer["kind"]
    if kind == "linear":
        return nn.Linear(layer["in"], layer["out"], bias=layer["bias"])
    if kind == "batch_norm":
        return BatchNorm(layer["width"], affine=layer["scale"], shift=layer["shift"])
    return nn.LayerNorm(layer["width"]) if kind == "layer_norm" else _ACTIVATIONS[kind]()
