"""Reading and writing the trained backbone of a run together with what it needs to be used again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone, weights_of
from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.core.plain import plain
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.data import Dataset
from osteon.data.cache import cache_folder
from osteon.parts.adapter import Adapter
from osteon.parts.cells import by_names
from osteon.parts.head_layers import first_layers, put_behind
from osteon.parts.members import spec_from
from osteon.parts.objective import Objective
from osteon.parts.surgery import apply_edits, edits_of, note_edits
from osteon.parts.types import DataSpec


@dataclass
class Trained:
    """A backbone with its preprocessing, read from a run folder or built from a public name.

    Args:
        backbone: the network, in eval mode.
        spec: data specification whose statistics and size it was trained with.
        meta: everything stored beside the weights.
        name: what to call it in tables.
        adapter: of an adapted run, the adapter with its head (``adapter(images)`` gives logits), else None.
    """

    backbone: Backbone
    spec: DataSpec
    meta: dict[str, Any]
    name: str
    adapter: Adapter | None = None


def save_trained(run: RunFolder, backbone: Backbone, spec: DataSpec, meta: dict[str, Any]) -> None:
    """Write ``model.safetensors``: weights, backbone recipe, data statistics and size."""
    state = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    run.save_model(state, {"backbone": recipe_of(backbone), "data": asdict(spec), **meta})


#: File of a run that holds the state of its objective beyond the network, where a later verb needs it.
HEAD = "head.safetensors"


def save_head(run: RunFolder, method: Objective) -> None:
    """Write ``head.safetensors``: what an objective keeps beside the network, and the data it was trained on."""
    state = {k: v.detach().cpu().contiguous() for k, v in method.kept().items()}
    if state:
        write_tensors(run.path / HEAD, state, plain({"data": asdict(method.data)}))


def load_head(source: str | Path, model: Trained) -> Objective | None:
    """The objective of a run with its trained head and the run's network, or None where none was kept."""
    file = Path(source) / HEAD
    if not file.is_file():
        return None
    state, meta = read_tensors(file)
    made = model.meta["objective"]
    method: Objective = registry.build("objective", made["name"], model.backbone, spec_from(meta["data"]),
                                       **made["options"])
    lacking = method.load_state_dict(state, strict=False)
    whole = {key.partition(".")[0] for key in state}  # predictors and companions are not kept
    if lacking.unexpected_keys or any(key.partition(".")[0] in whole for key in lacking.missing_keys):
        raise DataError("The head does not fit its objective.", where=str(file), fix="Pre-train again.")
    return method.eval()


def behind_head(source: str | Path, model: Trained, layer: int) -> None:
    """Let a run's network end behind a layer of its projection head (1: the first), in place; 0 leaves it as it is.

    Raises:
        UsageError: the run keeps no such layer.
    """
    if layer == 0:
        return
    method = load_head(source, model)
    projector = getattr(method, "projector", None)
    if projector is None:
        raise UsageError("This run keeps no projection head.", where=f"{source}, head_layer={layer}",
                         fix="Leave head_layer out, or pre-train with an objective that has one, e.g. simclr.")
    note_edits(model.backbone, [put_behind(model.backbone, first_layers(projector, layer))])


def recipe_of(backbone: Backbone) -> dict[str, Any]:
    """What builds the network again, without its weights; JSON-ready."""
    made = {"name": backbone.name, "options": backbone.options, "channels": backbone.channels, "size": backbone.size}
    edits = edits_of(backbone)
    return {**made, "edits": edits} if edits else made


def is_ours(source: str | Path) -> bool:
    """Whether a path is a run (finished or not) or an exported folder, rather than a folder of another library."""
    path = Path(source)
    if (path / "config.yaml").is_file():
        return True
    try:
        return "architecture" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def load_trained(source: str | Path) -> Trained:
    """Load the backbone a run left.

    Raises:
        UsageError: when the folder holds no finished model.
    """
    path = Path(source)
    if not path.is_dir():
        raise UsageError(f"There is no run folder at {path}.", where=str(path),
                         fix="Give the folder that `osteon pretrain --out` wrote.")
    if (path / "delta.safetensors").is_file():
        from osteon.verbs._adapt_store import load_adapted

        return load_adapted(path)
    state, meta = RunFolder(path).load_model()
    backbone, spec = rebuilt(state, meta, path / "model.safetensors")
    return Trained(backbone.eval(), spec, meta, path.name)


def rebuilt(state: Mapping[str, Tensor], meta: Any, file: Path) -> tuple[Backbone, DataSpec]:
    """The network that a file describes, with its weights, and the data it was trained on.

    Raises:
        DataError: the description is none of a network, or the weights are those of another; found out before memory is
            taken for a network larger than the file.
    """
    try:
        made = meta["backbone"]

        def build() -> Backbone:
            network = build_backbone(made["name"], channels=made["channels"], size=made["size"], **made["options"])
            apply_edits(network, made.get("edits", []))
            return network

        if ":" not in made["name"] and not made.get("edits"):  # an edited network may store its weights otherwise
            if made["options"].get("depth", 0) > len(state):
                raise ValueError(f"it describes {made['options']['depth']:,} blocks and holds {len(state)} tensors")
            claimed, held = weights_of(build), sum(tensor.numel() for tensor in state.values())
            if claimed > held:
                raise ValueError(f"it describes {claimed:,} weights and holds {held:,}")
        backbone = build()
        backbone.load_state_dict(state)
        return backbone, spec_from(meta["data"])
    except (UsageError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
            ValueError) as error:
        text = error.what if isinstance(error, UsageError) else str(error)
        reason = f"it lacks {text}" if isinstance(error, KeyError) else text[:500] or type(error).__name__
        raise DataError(f"The file does not describe a network that its weights fit: {reason}.", where=str(file),
                        fix="Use another run, or make this one again.") from error


def public_network(name: str, spec: DataSpec) -> tuple[Backbone, DataSpec]:
    """Somebody's weights with the statistics they expect: of the weights where they say so, else of the data.

    Args:
        name: a run or exported folder, ``timm:NAME`` or ``hf:NAME``.
        spec: what the images look like.
    """
    if is_ours(name):
        model = load_trained(name)
        return model.backbone, model.spec
    if not name.startswith(("timm:", "hf:")):
        raise UsageError(f"'{name}' is neither a run nor public weights.", where="--public",
                         fix="Write a run folder, timm:NAME or hf:NAME.")
    network = build_backbone(name, channels=spec.channels, size=spec.size, pretrained=True)
    stated = getattr(getattr(network, "model", None), "pretrained_cfg", None) or {}
    mean, std = (tuple(map(float, stated.get(key) or ())) for key in ("mean", "std"))
    if len(mean) == len(std) == spec.channels:
        spec = replace(spec, mean=mean, std=std)
    return network.eval(), spec


def fit_samples(dataset: Dataset, spec: DataSpec, rows: np.ndarray) -> Tensor:
    """Samples of a data set as the model expects them: its size, its scaling, its statistics. (B, C, *extent) float32.

    The rule: values are divided by the scale of *this* data set's storage type (so 16-bit and 8-bit data meet in
    [0, 1]), resized to the training size with antialiasing, then normalised with the statistics kept with the weights.

    Raises:
        DataError: when the number of channels differs.
    """
    if dataset.modality != spec.modality:
        raise DataError(f"The model was trained on {spec.modality}, this source holds {dataset.modality}.",
                        where=dataset.source, fix="Give data of the same kind.")
    if dataset.spec.channels != spec.channels:
        raise DataError(f"The model was trained on {spec.channels}-channel data; this source has "
                        f"{dataset.spec.channels} channels.", where=dataset.source)
    x = resized(dataset.batch(rows)[spec.modality].float() / dataset.spec.scale, spec)
    mean, std = (torch.tensor(v).view(1, -1, *[1] * (x.dim() - 2)) for v in (spec.mean, spec.std))
    return (x - mean) / std


def resized(x: Tensor, spec: DataSpec) -> Tensor:
    """Images (B, C, H, W) at the model's size; samples of other modalities must have it already.

    Raises:
        DataError: when they have another.
    """
    if x.shape[2:] == spec.extent or by_names(spec):
        return x
    if spec.modality != "image":
        raise DataError(f"The model takes {spec.modality} of {' x '.join(map(str, spec.extent))}; this source holds "
                        f"{' x '.join(map(str, x.shape[2:]))}.", where=spec.modality,
                        fix="Read it like the data the model was trained on: open_source(source, like=model.spec).")
    return torch.nn.functional.interpolate(x.float(), size=spec.extent, mode="bilinear", antialias=True,
                                           align_corners=False)


#: Features of more bytes are kept in a file that is mapped into memory.
MAPPED = 2**28


def room_for(rows: int, width: int) -> np.ndarray:
    """An empty (rows, width) float32 array: in memory, or beyond ``MAPPED`` bytes in a file of the cache folder.

    The file has no name and goes when the array does. Its place on the disk is taken at once, where the system can:
    a mapped file that finds the disk full later ends the process. Without place the array is in memory after all.
    """
    size = rows * width * 4
    if size <= MAPPED:
        return np.empty((rows, width), dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=cache_folder(None)) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, width))
    except OSError:
        return np.empty((rows, width), dtype=np.float32)


@torch.inference_mode()
def extract(backbone: Backbone, dataset: Dataset, spec: DataSpec, *, batch_size: int = 256,
            device: torch.device | str | None = None) -> np.ndarray:
    """Pooled features of every sample in order, on the GPU where there is one. -> (N, D) float32, mapped if large."""
    was_training, home = backbone.training, next(backbone.parameters()).device
    device = device or ("cuda" if torch.cuda.is_available() else home)
    backbone.eval().to(device)
    out = room_for(len(dataset), backbone.dim)
    for start in range(0, len(dataset), batch_size):
        rows = np.arange(start, min(start + batch_size, len(dataset)))
        out[rows] = backbone(fit_samples(dataset, spec, rows).to(device)).pooled.float().cpu().numpy()
    backbone.train(was_training).to(home)
    return out
