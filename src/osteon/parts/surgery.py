"""Networks whose layers differ from their recipe: each change as a small description that rebuilds it.

A backbone is described by name and options. What a compression changes beyond them is a list of edits, JSON-ready dicts
that are applied in order to a freshly built network before its weights are loaded. So a compressed network is stored
as text and tensors and opens without the code that made it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from osteon.core.errors import DataError, UsageError
from osteon.parts.compact import Int8Conv2d, Int8Linear, PackedLinear, factored
from osteon.parts.head_layers import put_behind, rebuilt
from osteon.parts.token_pruning import TokenPruning

Edit = dict[str, Any]
#: attribute of a network that holds its edits
_EDITS = "edits"
#: attributes of a module that follow its tensors' shapes
_SHAPED = ("in_features", "out_features", "in_channels", "out_channels", "num_features", "normalized_shape", "channels",
           "groups", "num_heads", "head_dim", "attn_dim", "scale")


def edits_of(network: nn.Module) -> list[Edit]:
    """What was changed so far, oldest first; empty for a network as its recipe makes it."""
    return list(getattr(network, _EDITS, []))


def apply_edits(network: nn.Module, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Make the changes, in order, in place; new tensors hold zeros until weights are loaded. Returns the network.

    Raises:
        DataError: an edit that does not fit the network, or that this version does not know.
    """
    for edit in edits:
        operation = _OPERATIONS.get(str(edit.get("op")))
        if operation is None:
            raise DataError(f"Unknown change of a network: {edit.get('op')!r}.", where="edits",
                            fix="It was written by a newer version of osteon: update.")
        try:
            operation(network, {k: v for k, v in edit.items() if k != "op"})
        except (AttributeError, KeyError, TypeError, UsageError) as error:
            raise DataError(f"A stored change ({edit['op']}) does not fit {type(network).__name__}: {error}",
                            where="edits") from error
    note_edits(network, edits)
    return network


def note_edits(network: nn.Module, edits: Sequence[Mapping[str, Any]]) -> None:
    """Remember changes that were already made."""
    setattr(network, _EDITS, [*edits_of(network), *(copy.deepcopy(dict(e)) for e in edits)])


def replace_layer(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of the layer of that name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def shape_edit(before: nn.Module, after: nn.Module) -> Edit:
    """How tensors and the sizes modules keep of them differ between two networks of equal structure."""
    old = {**dict(before.named_parameters()), **dict(before.named_buffers())}
    new = {**dict(after.named_parameters()), **dict(after.named_buffers())}
    shapes = {name: list(t.shape) for name, t in new.items() if t.shape != old[name].shape}
    values: dict[str, Any] = {}
    modules = dict(before.named_modules())
    for name, module in after.named_modules():
        for key in _SHAPED:
            value, was = getattr(module, key, None), getattr(modules[name], key, None)
            if isinstance(value, int | float | tuple) and value != was:
                values[f"{name}.{key}"] = list(value) if isinstance(value, tuple) else value
    return {"op": "shapes", "tensors": shapes, "values": values}


def _shapes(network: nn.Module, edit: Mapping[str, Any]) -> None:
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for name, shape in edit["tensors"].items():
        path, _, key = name.rpartition(".")
        module = network.get_submodule(path)
        if name in parameters:
            setattr(module, key, nn.Parameter(torch.zeros(shape, dtype=parameters[name].dtype),
                                              requires_grad=parameters[name].requires_grad))
        else:
            module._buffers[key] = torch.zeros(shape, dtype=buffers[name].dtype)
    for name, value in edit["values"].items():
        path, _, key = name.rpartition(".")
        setattr(network.get_submodule(path), key, tuple(value) if isinstance(value, list) else value)


def _layer(network: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise TypeError(f"{name} is no linear layer or convolution")
    return layer


def _factor(network: nn.Module, edit: Mapping[str, Any]) -> None:
    for name, rank in edit["ranks"].items():
        replace_layer(network, name, factored(_layer(network, name), rank, edit.get("form", "channel")))


def _int8(network: nn.Module, edit: Mapping[str, Any]) -> None:
    for name in edit["layers"]:
        layer = _layer(network, name)
        made: nn.Module = Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)
        replace_layer(network, name, made)


def _packed(network: nn.Module, edit: Mapping[str, Any]) -> None:
    for name, rank in edit["ranks"].items():
        layer = _layer(network, name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is no linear layer")
        replace_layer(network, name, PackedLinear(layer, bits=edit["bits"], group=edit["group"], rank=rank))


def _tokens(network: nn.Module, edit: Mapping[str, Any]) -> None:
    for name, options in edit["layers"].items():
        replace_layer(network, name, TokenPruning(network.get_submodule(name), prefix=edit["prefix"], **options))


def _head(network: nn.Module, edit: Mapping[str, Any]) -> None:
    put_behind(network, rebuilt(edit["layers"]))


_OPERATIONS: dict[str, Callable[[nn.Module, Mapping[str, Any]], None]] = {
    "shapes": _shapes, "factor": _factor, "int8": _int8, "packed": _packed, "tokens": _tokens,
    "head": _head}


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Everything a network stores, on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
