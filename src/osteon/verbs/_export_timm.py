"""A backbone in timm's layout: ``timm.create_model("local-dir:FOLDER")`` gives its pooled features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.atomic import atomic_path, write_text
from osteon.core.errors import MissingExtra, UsageError
from osteon.modalities import find
from osteon.parts.surgery import edits_of, tensors_of
from osteon.parts.types import DataSpec
from osteon.verbs._compress_program import refuse_difference

#: modalities whose samples timm's networks can read: (C, height, width)
FLAT = ("image", "sound")


def timm_form(backbone: Backbone, spec: DataSpec) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Architecture, arguments and weights under which timm knows a backbone.

    Raises:
        UsageError: timm has no such network.
    """
    if spec.modality not in FLAT:
        raise UsageError(f"timm has networks of images; this one reads {find(spec.modality).SAMPLES}.",
                         where="--format timm", fix="Use torch.export, onnx or safetensors.")
    if edits_of(backbone):
        raise UsageError("timm has no names for the layers of a compressed network.", where="--format timm",
                         fix="Use torch.export, onnx or safetensors.")
    if backbone.options.get("drop_mode") == "batch":
        raise UsageError("timm has no networks whose branches are scaled at test time, as stochastic depth of "
                         "mini-batches (drop_mode=batch) leaves them.", where="--format timm",
                         fix="Use torch.export, onnx or safetensors.")
    if backbone.name.startswith("timm:"):
        state = {k.removeprefix("model."): v for k, v in tensors_of(backbone).items()}
        return backbone.name.removeprefix("timm:").split(".")[0], dict(backbone.options), state
    options, state = backbone.options, tensors_of(backbone)
    if "mlp_ratio" in options and not {"causal", "trunk"} & set(options):
        return "vit_tiny_patch16_224", _vit_arguments(options), _vit_state(backbone, state)
    if options.get("stem") == "imagenet" and options["stride"] == 32 and len(options["widths"]) == 4:
        name = "resnet50" if options["block"] == "bottleneck" else "resnet18"
        return name, {"layers": options["depths"], "channels": options["widths"]}, state
    raise UsageError(f"timm has no network like {backbone.name} with these options.", where="--format timm",
                     fix="timm's ResNets have a 7 x 7 stem and a stride of 32. Use torch.export, onnx or safetensors.")


def _vit_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    cls = options["pool"] == "cls"
    return {"patch_size": options["patch"], "embed_dim": options["dim"], "depth": options["depth"],
            "num_heads": options["heads"], "mlp_ratio": options["mlp_ratio"], "qkv_bias": options["qkv_bias"],
            "init_values": options["layer_scale"] or None, "class_token": cls, "reg_tokens": options["registers"],
            "global_pool": "token" if cls else "avg", "fc_norm": False, "no_embed_class": True}


def _vit_state(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fixed positions become a table, as timm keeps them."""
    with torch.no_grad():
        positions = backbone.positions(backbone.grid(*backbone.extent))
    return {**state, "pos_embed": positions.detach().cpu().contiguous().clone()}


def write_timm(folder: Path, backbone: Backbone, spec: DataSpec, class_names: Sequence[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` and check what timm makes of them.

    Raises:
        MissingExtra: timm is not installed.
        UsageError: timm cannot build the network, or it gives other features.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm", why="Exporting to timm") from error
    from safetensors.torch import save_file

    architecture, arguments, state = timm_form(backbone, spec)
    fixed: dict[str, Any] = {"in_chans": backbone.channels, "num_classes": 0}
    if architecture.startswith("vit") or "img_size" in arguments:
        height, width = backbone.extent
        fixed["img_size"] = height if height == width else (height, width)
    model = timm.create_model(architecture, **{**arguments, **fixed})
    model.load_state_dict(state)
    _compare(backbone, model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file({k: v.clone() for k, v in state.items()}, temporary, metadata={"format": "pt"})
    scale = 1.0  # timm's transforms give values in [0, 1], which is what the statistics are of
    write_text(folder / "config.json", json.dumps({
        "architecture": architecture, "num_classes": 0, "num_features": backbone.dim, "label_names": list(class_names),
        "model_args": {**arguments, **fixed},
        "pretrained_cfg": {"input_size": [backbone.channels, *backbone.extent], "fixed_input_size": False,
                           "interpolation": "bilinear", "crop_pct": scale, "crop_mode": "squash",
                           "mean": list(spec.mean), "std": list(spec.std), "num_classes": 0}}, indent=2) + "\n")
    return folder


def _compare(backbone: Backbone, model: nn.Module, folder: Path) -> None:
    x = torch.randn(3, backbone.channels, *backbone.extent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        refuse_difference(backbone.eval()(x).pooled, model.eval()(x), folder)
