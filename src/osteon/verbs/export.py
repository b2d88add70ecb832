"""``osteon export``: leave the backbone in a form other programs read, preprocessing included."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon.backbones import Backbone
from osteon.core.atomic import write_text
from osteon.core.errors import MissingExtra, UsageError, nearest
from osteon.core.licences import Standing, standing, stated
from osteon.core.tensorfile import write_tensors
from osteon.parts.surgery import tensors_of
from osteon.parts.tracing import traced
from osteon.parts.types import DataSpec
from osteon.verbs._alone import alone_in
from osteon.verbs._compress_program import TOLERANCE, Pooled, emptied, write_program
from osteon.verbs._export_hub import model_card
from osteon.verbs._export_timm import timm_form, write_timm
from osteon.verbs._model import Trained, load_trained, recipe_of

FORMATS = ("safetensors", "timm", "onnx", "torch.export", "hub-folder")
#: what the files of an exported folder are
FILES = {"model.safetensors": "weights, read by osteon.load", "config.json": "architecture, preprocessing, label names",
         "program.pt2": "the network as a program: torch.export.load(...).module()(batch) gives features",
         "model.onnx": "the network for onnxruntime: a batch in, features out",
         "timm": "a folder for timm's local-dir:"}


@alone_in("out")
def export(run: str | Path, *, out: str | Path, format: str = "safetensors",  # noqa: A002
           license: str | None = None, data_license: str | None = None) -> Path:  # noqa: A002
    """Export the backbone of a run.

    Args:
        run: run folder.
        out: folder to write. Whatever the format, it holds ``model.safetensors`` and ``config.json`` with preprocessing
            and label names, read back by :func:`osteon.load`; ViT keys are timm's and ResNet keys torchvision's.
        format: ``safetensors``: nothing else. ``timm``: also ``timm/``, for ``timm.create_model("local-dir:...")``.
            ``onnx``: also ``model.onnx``, a batch in, pooled features out, any batch size (needs the extra ``onnx``).
            ``torch.export``: also ``program.pt2``, the same for plain PyTorch. ``hub-folder``: that and ``README.md``,
            a model card from what the run recorded: data, licences, initial weights, scores with intervals.
        license: under which you publish the weights, e.g. ``apache-2.0``; by default that of the initial weights, where
            it is known, else ``unknown``.
        data_license: of the training data, where the run does not know it.

    Returns:
        The folder.

    Raises:
        UsageError: unknown format, a licence that is none, or an exported model that does not reproduce the backbone.
    """
    if format not in FORMATS:
        raise UsageError(f"Unknown format '{format}'.{nearest(format, FORMATS)}", where="--format",
                         fix=f"Use one of {', '.join(FORMATS)}.")
    licences = _licences(run, license, data_license)
    trained = load_trained(run)
    backbone, spec = trained.backbone, trained.spec
    if format == "timm":
        timm_form(backbone, spec)  # refuses before anything is written
    folder = Path(out)
    tensors = tensors_of(backbone)  # refused where the network has no weights of its own, before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors,
                  {**trained.meta, "backbone": recipe_of(backbone), "data": asdict(spec)})
    write_text(folder / "config.json", json.dumps(_config(trained, licences), indent=2) + "\n")
    if format == "onnx":
        _onnx(folder / "model.onnx", backbone, spec)
    elif format == "timm":
        write_timm(folder / "timm", backbone, spec, trained.meta.get("class_names", []))
    elif format != "safetensors":
        write_program(folder / "program.pt2", backbone)
    if format == "hub-folder":
        files = {name: what for name, what in FILES.items() if (folder / name).exists()}
        write_text(folder / "README.md", model_card(Path(run), trained, files, licences))
    return folder


def _licences(run: str | Path, license: str | None, data_license: str | None) -> Standing:  # noqa: A002
    """What the run recorded, with what is stated now above it."""
    found = standing(run)
    if license is not None:
        found = replace(found, license=stated(license, "--license"))
    if data_license is not None:
        found = replace(found, data_license=stated(data_license, "--data-license"))
    return found


def _config(trained: Trained, licences: Standing) -> dict[str, Any]:
    """What ``config.json`` says."""
    spec, meta = trained.spec, trained.meta
    other = {} if spec.modality == "image" else {"modality": spec.modality, "extent": list(spec.extent),
                                                 "traits": dict(spec.traits)}
    return {
        "architecture": recipe_of(trained.backbone), "width": trained.backbone.dim,
        "preprocessing": {"size": spec.size, "channels": spec.channels, "divide_by": spec.scale,
                          "mean": list(spec.mean), "std": list(spec.std), "resize": "bilinear, antialias",
                          "order": "divide, resize, subtract mean, divide by std", **other},
        "class_names": meta.get("class_names", []), "objective": meta.get("objective"),
        "licences": licences.as_dict(),
        "trained_on": {"source": meta.get("source"), "fingerprint": meta.get("fingerprint")}}


def _onnx(path: Path, backbone: Backbone, spec: DataSpec) -> None:
    """Write a graph with a free batch size and check it against the backbone on another batch."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx, onnxscript and onnxruntime", "onnx", why="Exporting to ONNX") from error
    model = Pooled(backbone).eval()
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as scratch:  # large weights make a second file
        made = Path(scratch) / path.name
        _write_onnx(made, model, spec)
        for file in sorted(made.parent.iterdir(), reverse=True):
            os.replace(file, path.parent / file.name)


def _write_onnx(path: Path, model: Pooled, spec: DataSpec) -> None:
    import onnxruntime

    batch = torch.export.Dim("batch", min=1)
    with traced():
        torch.onnx.export(model, (model.backbone.example(2),), str(path), input_names=[spec.modality],
                          output_names=["features"], dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    x = emptied(model.backbone.example(3, seed=1))
    with torch.inference_mode():
        wanted = model(x).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {spec.modality: x.numpy()})[0]
    worst = float(np.abs(wanted - got).max())
    if worst > TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        raise UsageError(f"The exported graph differs from the backbone by {worst:.2g}.", where=str(path))
