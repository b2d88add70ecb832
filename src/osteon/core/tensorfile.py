"""Tensors on disk with their description and a checksum, and nested training state as flat tensors.

One safetensors file holds everything, so that it can be replaced in one rename. Its only metadata entry, ``osteon``, is
JSON ``{"meta": ..., "sha256": ...}``; the checksum covers names, types, shapes, values and meta. One entry, because
the order of several is not fixed and equal content must give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteon.core.atomic import atomic_path
from osteon.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_TAG = "~"


def digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """SHA-256 over sorted names, types, shapes and bytes of CPU tensors, and over the JSON text ``meta``."""
    import torch

    state = hashlib.sha256(meta.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"\n{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached contiguous CPU tensors, none sharing memory with another: what the format can hold."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON description atomically and durably, with a checksum inside.

    Args:
        path: the ``.safetensors`` file.
        tensors: any devices, strides and sharing; values, shapes and types are kept.
        meta: anything JSON can hold.
    """
    from safetensors.torch import save_file

    owned = _own(tensors)
    text = json.dumps(meta, sort_keys=True)
    note = json.dumps({"meta": text, "sha256": digest(owned, text)})
    with atomic_path(path) as temporary:
        save_file(owned, temporary, metadata={"osteon": note})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors` and verify it: ``(tensors, meta)``.

    Raises:
        DataError: the file is missing, cut short, or differs from what was written.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise DataError("There is no such file.", where=str(path), fix="Check the name and the folder.")
    try:
        with safe_open(str(path), framework="pt") as file:
            note = json.loads((file.metadata() or {})["osteon"])
            # Cloned: the originals are views of the mapped file.
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        text, expected = note["meta"], note["sha256"]
        if digest(tensors, text) != expected:
            raise ValueError("its checksum does not match")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            OverflowError) as error:
        reason = "its checksum is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"The file is damaged or was not written by osteon: {reason}.", where=str(path),
                        fix="Use an earlier checkpoint or write it again.") from error


def flatten_state(state: Any, name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Split a nested state, e.g. ``optimizer.state_dict()``, into tensors and a JSON skeleton.

    Dicts (any plain keys, in order), lists, tuples, numbers, strings, None and tensors come back exactly, with dense
    strides such as channels_last. A tensor that occurs twice is stored once and comes back as one object.

    Args:
        state: the nested structure.
        name: prefix of the tensors' names.

    Returns:
        ``({name: tensor}, skeleton)``; the skeleton survives JSON.

    Raises:
        UsageError: a value of another type, naming its place.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, name, tensors, {})


def _pack(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    import torch

    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {_TAG: "float", "value": repr(number)}
    if isinstance(value, torch.Tensor):
        return _pack_tensor(value, path, tensors, seen)
    if isinstance(value, dict):
        return {_TAG: "dict", "items": [[_pack(key, f"{path}.key", tensors, seen),
                                         _pack(item, f"{path}.{key}", tensors, seen)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}.{i}", tensors, seen) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TAG: "tuple", "items": items}
    raise UsageError(f"A value of type {type(value).__name__} cannot be saved.", where=path,
                     fix="Use dicts, lists, tuples, numbers, strings, None and tensors.")


def _pack_tensor(value: Tensor, path: str, tensors: dict[str, Tensor], seen: dict[int, str]) -> dict[str, Any]:
    import torch

    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise UsageError("Sparse, quantised and meta tensors cannot be saved.", where=path)
    if id(value) not in seen:
        # A key 1 and a key "1" side by side would give one path twice.
        while path in tensors:
            path += "'"
        seen[id(value)] = path
        tensors[path] = value.detach()
    packed: dict[str, Any] = {_TAG: "tensor", "name": seen[id(value)]}
    if not value.is_contiguous() and _is_dense(value):
        packed["stride"] = list(value.stride())
    return packed


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps (a permuted contiguous tensor)."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def unflatten_state(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """Put together what :func:`flatten_state` took apart.

    Raises:
        DataError: a tensor named by the skeleton is missing, or the skeleton is damaged.
    """
    try:
        return _unpack(skeleton, tensors, {})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(f"The description of the state is damaged: {str(error)[:200] or type(error).__name__}.",
                        where="checkpoint", fix="Use an earlier checkpoint.") from error


def _unpack(node: Any, tensors: Mapping[str, Tensor], done: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors, done) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node[_TAG]
    if kind not in ("float", "tuple", "dict", "tensor"):
        raise ValueError(f"it has a value of the kind {kind!r:.40}")
    if kind == "float":
        return float(node["value"])
    if kind == "tuple":
        return tuple(_unpack(item, tensors, done) for item in node["items"])
    if kind == "dict":
        return {_unpack(key, tensors, done): _unpack(item, tensors, done) for key, item in node["items"]}
    name = node["name"]
    if name not in tensors:
        raise DataError(f"The tensor '{name}' is missing from the checkpoint.", where="checkpoint",
                        fix="Use an earlier checkpoint.")
    if name not in done:
        done[name] = _restride(tensors[name], node.get("stride"))
    return done[name]


def _dense_strides(tensor: Tensor, stride: list[int]) -> list[int]:
    """Strides of a dense tensor of that shape whose sides are in the order that ``stride`` says."""
    if len(stride) != tensor.dim() or not all(type(s) is int and s >= 0 for s in stride):
        raise ValueError(f"the strides are {stride!r:.80}")
    expected, made = 1, list(stride)
    for side in sorted(range(len(stride)), key=lambda i: (stride[i], tensor.shape[i])):
        if tensor.shape[side] != 1:
            made[side], expected = expected, expected * tensor.shape[side]
    return made


def _restride(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """The same values in the memory order they had: sums over them then round alike after a resume."""
    import torch

    if stride is None:
        return tensor
    if _dense_strides(tensor, stride) != stride:
        raise ValueError(f"the strides {stride} do not fit a tensor of shape {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
