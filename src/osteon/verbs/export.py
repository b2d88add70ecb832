"""``osteon export``: leave the backbone in a form other programs read, preprocessing included."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from osteon.core.atomic import write_text
from osteon.core.errors import MissingExtra, UsageError, nearest
from osteon.core.tensorfile import write_tensors
from osteon.verbs._model import load_trained

FORMATS = ("safetensors", "onnx")
#: largest difference allowed between the backbone and its exported form, on normalised input
TOLERANCE = 1e-5


def export(run: str | Path, *, out: str | Path, format: str = "safetensors") -> Path:  # noqa: A002
    """Export the backbone of a run.

    Args:
        run: run folder.
        out: folder to write.
        format: ``safetensors``: ``model.safetensors`` and ``config.json``, read back by :func:`osteon.load`; ViT keys
            are timm's and ResNet keys torchvision's, so that those libraries load them too. ``onnx``: also
            ``model.onnx``, images in, pooled features out, any batch size (needs the extra ``onnx``).

    Returns:
        The folder.

    Raises:
        UsageError: unknown format, or an exported model that does not reproduce the backbone.
    """
    if format not in FORMATS:
        raise UsageError(f"Unknown format '{format}'.{nearest(format, FORMATS)}", where="--format",
                         fix=f"Use one of {', '.join(FORMATS)}.")
    trained = load_trained(run)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    made = {"name": trained.backbone.name, "options": trained.backbone.options,
            "channels": trained.backbone.channels, "size": trained.backbone.size}
    meta = {**trained.meta, "backbone": made, "data": asdict(trained.spec)}
    state = {k: v.detach().cpu().contiguous() for k, v in trained.backbone.state_dict().items()}
    write_tensors(folder / "model.safetensors", state, meta)
    spec = trained.spec
    write_text(folder / "config.json", json.dumps({
        "architecture": made, "width": trained.backbone.dim,
        "preprocessing": {"size": spec.size, "channels": spec.channels, "divide_by": spec.scale,
                          "mean": list(spec.mean), "std": list(spec.std), "resize": "bilinear, antialias",
                          "order": "divide, resize, subtract mean, divide by std"},
        "class_names": trained.meta.get("class_names", []), "objective": trained.meta.get("objective"),
        "trained_on": {"source": trained.meta.get("source"), "fingerprint": trained.meta.get("fingerprint")}},
        indent=2) + "\n")
    if format == "onnx":
        _onnx(folder / "model.onnx", trained.backbone, spec.channels, spec.size)
    return folder


class _Pooled(torch.nn.Module):
    """Only the pooled features, which is what an exported graph returns."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) normalised -> (B, D)."""
        return self.backbone(x).pooled


def _onnx(path: Path, backbone: torch.nn.Module, channels: int, size: int) -> None:
    """Write a graph with a free batch size and check it against the backbone on another batch."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx, onnxscript and onnxruntime", "onnx", why="Exporting to ONNX") from error
    model = _Pooled(backbone).eval()
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(model, (torch.randn(2, channels, size, size),), str(path), input_names=["image"],
                      output_names=["features"], dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(x).numpy()
    got = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})[0]
    worst = float(np.abs(wanted - got).max())
    if worst > TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        path.unlink()
        raise UsageError(f"The exported graph differs from the backbone by {worst:.2g}.", where=str(path))
