"""Weights as named blocks on disk: read, compared, combined and written one tensor at a time.

Nothing here holds more than one tensor of each model. Sums are taken in float64 and rounded once, so that the mean of
copies of a float32 (or narrower) model is that model, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osteon.core.atomic import atomic_path
from osteon.core.errors import DataError, UsageError

#: A tensor by its name: what every combination of models is.
Weights = Callable[[str], Tensor]
#: safetensors' names of types
TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_NAMES = {dtype: name for name, dtype in TYPES.items()}
#: buffers of batch normalisation that describe data rather than being trained
STATISTICS = ("running_mean", "running_var")


class StateFile:
    """The weights of a run, left on disk; ``state[name]`` reads one tensor.

    Args:
        path: a run folder, or a ``.safetensors`` file osteon wrote.
        label: what to call it in messages; by default the name of the folder or file.
        prefix: put before every name, where others hold the same network one level deeper.

    Attributes:
        shapes: name -> shape, sorted by name.
        dtypes: name -> type.
        meta: what is stored beside the weights.

    Raises:
        DataError: no such file, or one osteon did not write.
    """

    def __init__(self, path: str | Path, *, label: str = "", prefix: str = "") -> None:
        from safetensors import SafetensorError, safe_open

        given = Path(path)
        self.path = given / "model.safetensors" if given.is_dir() else given
        self.label, self._prefix = label or given.name, prefix
        if not self.path.is_file():
            raise DataError("There is no finished model there: no model.safetensors.", where=str(given),
                            fix="Give the folder of a finished run.")
        try:
            self._file = safe_open(str(self.path), framework="pt").__enter__()
            note = json.loads((self._file.metadata() or {})["osteon"])
            self._text, self._expected = str(note["meta"]), str(note["sha256"])
            self.meta: dict[str, Any] = json.loads(self._text)
            slices = {prefix + name: self._file.get_slice(name) for name in sorted(self._file.keys())}
            self.shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            self.dtypes = {name: TYPES[s.get_dtype()] for name, s in slices.items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError("The file is damaged or was not written by osteon.", where=str(self.path),
                            fix="Make the run again, or give another one.") from error

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, with memory of its own."""
        return self._file.get_tensor(name.removeprefix(self._prefix)).clone()

    def __iter__(self) -> Any:
        """Names, sorted."""
        return iter(self.shapes)

    def fingerprint(self, text: str = "") -> str:
        """Checksum of names, types, shapes and values, and of ``text``; reads every tensor once."""
        mark = _Digest(text)
        for name in self.shapes:
            mark.add(name.removeprefix(self._prefix), self[name])
        return mark.value()

    def verify(self) -> None:
        """Read every tensor once and compare the checksum. Raises DataError when the file is damaged."""
        if self.fingerprint(self._text) != self._expected:
            raise DataError("The file is damaged: its checksum does not match.", where=str(self.path),
                            fix="Make the run again, or give another one.")


class _Digest:
    """The checksum of :func:`osteon.core.tensorfile.digest`, fed one tensor at a time in the order of names."""

    def __init__(self, text: str) -> None:
        self._state = hashlib.sha256(text.encode("utf-8"))

    def add(self, name: str, tensor: Tensor) -> bytes:
        """Take in a tensor; returns its bytes."""
        self._state.update(f"\n{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        self._state.update(data)
        return data

    def value(self) -> str:
        return self._state.hexdigest()


def check_fit(models: Sequence[StateFile], base: StateFile | None = None) -> None:
    """Whether models can be combined tensor by tensor; looks at names and shapes only, before any tensor is read.

    They need the same tensors, shapes and types, the same backbone and statistics of the data (else one weight means
    different things) and, where they hold a classifier, the same classes in the same order. A base may lack what is not
    of the backbone.

    Raises:
        UsageError: what differs, naming the tensor or setting and both models.
    """
    first = models[0]
    for other in [*models[1:], *([base] if base is not None else [])]:
        where = f"{first.label} and {other.label}"
        for name in [*first.shapes, *other.shapes]:
            if other is base and name in first.shapes and name not in base.shapes and not of_backbone(name, first):
                continue
            if name not in first.shapes or name not in other.shapes:
                lacks, has = (first, other) if name not in first.shapes else (other, first)
                raise UsageError(f"The tensor '{name}' is in {has.label} but not in {lacks.label}.", where=where,
                                 fix="Merge runs of one architecture.")
            for what, a, b in (("shape", first.shapes[name], other.shapes[name]),
                               ("type", first.dtypes[name], other.dtypes[name])):
                if a != b:
                    raise UsageError(f"The tensor '{name}' has {what} {a} in {first.label} and {b} in {other.label}.",
                                     where=where, fix="Merge runs of one architecture.")
        _check_meta(first, other, where, of_base=other is base)


def _check_meta(first: StateFile, other: StateFile, where: str, *, of_base: bool) -> None:
    made, theirs = (m.meta.get("backbone") or {} for m in (first, other))
    for key in ("name", "channels", "size", "options") if made and theirs else ():
        if made.get(key) != theirs.get(key):
            raise UsageError(f"The backbones differ in {key}: {made.get(key)} and {theirs.get(key)}.", where=where,
                             fix="Merge runs of one architecture.")
    data, others = (m.meta.get("data") or {} for m in (first, other))
    for key in ("mean", "std", "channels", "size"):
        if not _close(data.get(key), others.get(key)):
            raise UsageError(f"The models normalise their input differently: {key} is {data.get(key)} and "
                             f"{others.get(key)}.", where=where,
                             fix="Train members from one start with --init, which keeps the statistics.")
    if of_base:
        return
    start, beginning = ((m.meta.get("base") or {}).get("fingerprint") for m in (first, other))
    if start != beginning:
        raise UsageError("The models were adapted from different bases ('base_fingerprint' differs).", where=where,
                         fix="Merge models with one start.")
    if any(is_head(name) for name in first.shapes):
        mine, labels = (list(m.meta.get("class_names") or []) for m in (first, other))
        for i, (a, b) in enumerate(zip(mine, labels, strict=False)):
            if a != b:
                head = next(name for name in first.shapes if is_head(name))
                raise UsageError(f"The classifiers name their classes in another order: row {i} of '{head}' is '{a}' "
                                 f"in {first.label} and '{b}' in {other.label}.", where=where,
                                 fix="Train all members on the same list of classes.")


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a classifier on top of the backbone."""
    return name.split(".")[0] in ("head", "classifier")


def of_backbone(name: str, model: StateFile) -> bool:
    """Whether a tensor of an adapted run belongs to its backbone; in other runs all do."""
    return name.startswith("backbone.") if model.meta.get("adapter") else not is_head(name)


def _close(a: Any, b: Any) -> bool:
    """Equal, up to rounding for lists of numbers."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9)
                                        for x, y in zip(a, b, strict=True))
    return bool(a == b)


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of batch normalisation."""
    return name.rpartition(".")[2] in STATISTICS


def weighted(pairs: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Sum of tensors times weights, in float64, rounded once to the type of the tensors."""
    total: Tensor | None = None
    dtype = torch.float32
    for weight, tensor in pairs:
        term = tensor.double() * weight
        dtype = tensor.dtype
        total = term if total is None else total.add_(term)
    if total is None:
        raise UsageError("Nothing was given to combine.", where="weighted")
    return total.to(dtype)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Mean of tensors, taken in float64 and rounded once: copies give themselves back."""
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor
    return (total / len(tensors)).to(tensors[0].dtype)


def write_stream(path: Path, like: StateFile, tensor: Weights, meta: Mapping[str, Any]) -> None:
    """Write a model tensor by tensor to a file that :func:`osteon.core.tensorfile.read_tensors` reads and verifies.

    Args:
        path: the ``.safetensors`` file, replaced only when all is written.
        like: gives names, shapes and types.
        tensor: makes the tensor of each name; asked once, in the order of names.
        meta: anything JSON can hold.

    Raises:
        DataError: a tensor came out with another shape or type, or with numbers that are not finite.
    """
    text = json.dumps(meta, sort_keys=True)
    # The header comes first and holds the checksum of what follows: its place is kept by zeros of the same length.
    header, offsets = _header(like, json.dumps({"meta": text, "sha256": "0" * 64}))
    mark = _Digest(text)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for name in like:
            value = tensor(name).detach().cpu()
            if tuple(value.shape) != like.shapes[name] or value.dtype != like.dtypes[name]:
                raise DataError(f"The merged tensor '{name}' is {value.dtype} {tuple(value.shape)}.", where=str(path))
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DataError(f"The merged tensor '{name}' holds NaN or infinite values.", where=str(path),
                                fix="Look for a member whose training diverged.")
            file.seek(len(header) + offsets[name])
            file.write(mark.add(name, value))
        file.seek(0)
        file.write(_header(like, json.dumps({"meta": text, "sha256": mark.value()}))[0])


def _header(like: StateFile, note: str) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file and where each tensor begins after it; wide types first keep all aligned."""
    order = sorted(like, key=lambda name: (-like.dtypes[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": {"osteon": note}}
    offsets, at = {}, 0
    for name in order:
        size = math.prod(like.shapes[name]) * like.dtypes[name].itemsize
        entries[name] = {"dtype": _NAMES[like.dtypes[name]], "shape": list(like.shapes[name]),
                         "data_offsets": [at, at + size]}
        offsets[name], at = at, at + size
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
