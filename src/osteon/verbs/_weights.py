"""Initial weights from a single file: a run's model or checkpoint, or a state dict somebody else saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors
from osteon.parts.types import DataSpec
from osteon.verbs._model import Trained, rebuilt

#: what other programs put before the names of a backbone's weights
PREFIXES = ("", "module.", "model.", "backbone.", "encoder.", "module.backbone.", "module.encoder.",
            "objective.backbone.")
#: where training programs keep the weights inside what they save
HOLDERS = ("state_dict", "model", "model_state_dict", "student", "teacher")


def from_file(file: Path, name: str, options: Mapping[str, Any], spec: DataSpec) -> Trained:
    """A backbone with the weights of one file.

    Args:
        file: ``model.safetensors`` of a run, a checkpoint in its ``checkpoints/``, or a state dict (safetensors, or
            torch's format, read as weights only) of the architecture ``name``.
        name: the backbone asked for; ``auto`` where the file says it itself.
        options: the backbone's options asked for.
        spec: the new source, whose statistics are used where the file has none.

    Raises:
        UsageError: a state dict of no named architecture.
        DataError: a file that cannot be read, or whose weights do not fit the architecture, naming the first.
    """
    state, meta = _read(file)
    if "backbone" in meta:
        network, known = rebuilt(state, meta, file)
        return Trained(network, known, meta, file.stem)
    if meta and (file.parent.parent / "config.yaml").is_file():
        config = RunFolder(file.parent.parent).config()
        network = build_backbone(config["backbone"], channels=spec.channels, size=spec.size,
                                 **config["backbone_options"])
        return Trained(fill(network, state, file), spec, {}, file.stem)
    if name == "auto":
        raise UsageError("The file holds weights but does not say of which architecture.", where=f"--init {file}",
                         fix="Name it: --backbone timm:NAME, hf:NAME or one of osteon's.")
    network = build_backbone(name, channels=spec.channels, size=spec.size, **options)
    return Trained(fill(network, state, file), spec, {}, file.stem)


def fill(network: Backbone, state: Mapping[str, Tensor], file: Path) -> Backbone:
    """Load a state dict whose names may carry a prefix; what belongs to no backbone (heads, teachers) is left out.

    Raises:
        DataError: a weight of the backbone is missing or has another shape.
    """
    wanted = network.state_dict()
    # timm's and transformers' networks lie one level down in ours.
    inner = "model." if all(k.startswith("model.") for k in wanted) else ""
    found: dict[str, Tensor] = {}
    for prefix in sorted(PREFIXES, key=len):
        named = {inner + k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
        named |= {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)} if inner else {}
        here = {k: v for k, v in named.items() if k in wanted}
        if len(here) > len(found):
            found = here
    for key, value in wanted.items():
        if key not in found:
            raise DataError(f"The file has no weights for '{key}' of {network.name}.", where=str(file),
                            fix="Name the architecture the file was saved from with --backbone and its options.")
        if found[key].shape != value.shape:
            raise DataError(f"'{key}' has shape {tuple(found[key].shape)} in the file, {tuple(value.shape)} in "
                            f"{network.name}.", where=str(file),
                            fix="Name the architecture the file was saved from with --backbone and its options.")
    network.load_state_dict(found)
    network.notes.append(f"weights: {file.name}, {len(found)} tensors"
                         + (f"; {len(state) - len(found)} others were left out" if len(state) > len(found) else ""))
    return network


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file; the description is empty where another program wrote it."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        return _foreign(file), {}
    try:
        with safe_open(str(file), framework="pt") as handle:
            if "osteon" not in (handle.metadata() or {}):
                return {k: handle.get_tensor(k).clone() for k in handle.keys()}, {}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"The file cannot be read: {error}", where=str(file), fix="Save it again.") from error
    return read_tensors(file)


def _foreign(file: Path) -> dict[str, Tensor]:
    """Weights in torch's format, without running anything the file may hold."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files it will not read
        raise DataError("The file cannot be read as weights only: it is damaged, or it holds Python objects, which "
                        "osteon never runs.", where=str(file),
                        fix="Save its state dict with safetensors.torch.save_file.") from error
    while isinstance(loaded, dict) and not any(isinstance(v, Tensor) for v in loaded.values()):
        inner = next((loaded[k] for k in HOLDERS if isinstance(loaded.get(k), dict)), None)
        if inner is None:
            break
        loaded = inner
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise DataError("The file holds no named weights.", where=str(file), fix="Save a state dict.")
    return state
