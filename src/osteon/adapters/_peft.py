"""The skeleton of adapters that the PEFT library applies, with its traps closed.

What is refused or put right, and why: a convolution with groups cannot be merged; LoRA drops dilation and padding modes
and HRA the second side of a kernel; a linear layer inside ``nn.MultiheadAttention`` is read and never called, so that
an adapter on it would do nothing; the fast path of ``nn.TransformerEncoderLayer`` in evaluation would do the same.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from osteon.core.atomic import write_bytes, write_text
from osteon.core.errors import MissingExtra, UsageError
from osteon.parts.adapter import Adapter
from osteon.parts.reparam import Layer, select_layers
from osteon.parts.types import DataSpec

try:
    import peft
    from safetensors.torch import save as pack
except ImportError as error:
    raise MissingExtra("peft", "peft", why="This adapter") from error

if TYPE_CHECKING:
    from osteon.backbones import Backbone

RULES = ("auto", "attention")


class PeftAdapter(Adapter):
    """An adapter whose layers are PEFT's.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
    """

    def __init__(self, backbone: Backbone, task: DataSpec) -> None:
        super().__init__(backbone, task)
        self.shapes: dict[str, Layer] = {}
        self._peft: tuple[Any, ...] = ()  # in a tuple: its modules are the backbone's and must not be listed twice

    def choose(self, targets: str, *, convolutions: bool | None = None) -> dict[str, Layer]:
        """The layers to adapt; by rule only what PEFT adapts rightly, and an error where another is named."""
        found = select_layers(self.backbone, targets, grouped=targets in RULES, convolutions=convolutions)
        inside = {f"{name}.out_proj" for name, m in self.backbone.named_modules()
                  if isinstance(m, nn.MultiheadAttention)}
        reasons = {name: _unfit(name, layer, inside) for name, layer in found.items()}
        bad = [name for name, reason in reasons.items() if reason]
        if bad and (targets not in RULES or len(bad) == len(found)):
            raise UsageError(f"{bad[0]} {reasons[bad[0]]}.", where="targets", fix="Leave it out, or use svfit or "
                             "vectorfit, which can change it.")
        if bad:
            self.notes.append(f"left out: {', '.join(f'{name} ({reasons[name]})' for name in bad)}")
        return {name: layer for name, layer in found.items() if name not in bad}

    def wrap(self, config: Any, layers: Mapping[str, Layer]) -> None:
        """Let PEFT put its layers in place of those named."""
        self.shapes = dict(layers)
        self._fast = [m for m in self.backbone.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        self._fast_values = [m.activation_relu_or_gelu for m in self._fast]
        for module in self._fast:
            module.activation_relu_or_gelu = 0  # what its fast path asks for first
        model = peft.get_peft_model(cast(Any, self.backbone), config)
        self._peft = (model,)
        placed = {name for name, m in self.backbone.named_modules() if hasattr(m, "base_layer")}
        if placed != set(layers):
            raise UsageError(f"PEFT changed other layers than asked for: {sorted(placed ^ set(layers))[0]}.",
                             where="targets")

    def train(self, mode: bool = True) -> PeftAdapter:
        """Training mode for the adapter, its dropout included; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        for name, module in self.backbone.named_modules():
            if name.endswith("lora_dropout"):
                module.train(mode)
        return self

    def expected_trainable(self) -> int:
        """The formula of one layer, summed over the layers, and the head."""
        return sum(self.count(layer) for layer in self.shapes.values()) + self.head_size

    def count(self, layer: Layer) -> int:
        """How many numbers train in one layer, by the method's formula."""
        raise UsageError("An adapter of PEFT says how many numbers train in a layer.", where="count")

    def merge(self) -> Backbone:
        """A plain backbone with every adapter folded into its layer."""
        (model,) = copy.deepcopy(self._peft)
        with torch.no_grad():
            plain = model.merge_and_unload(safe_merge=True)
        fast = [m for m in plain.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        for module, value in zip(fast, self._fast_values, strict=True):
            module.activation_relu_or_gelu = value
        return plain

    def write_peft(self, folder: Path) -> bool:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for the backbone alone, without the head."""
        (model,) = self._peft
        write_peft_files(folder, model.peft_config["default"], peft.get_peft_model_state_dict(
            model, save_embedding_layers=False))
        return True


def write_peft_files(folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write the two files, each whole or not at all."""
    stored = copy.deepcopy(config)
    stored.inference_mode = True
    with tempfile.TemporaryDirectory() as scratch:
        stored.save_pretrained(scratch)
        values = json.loads((Path(scratch) / "adapter_config.json").read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = None  # the base is a run or a name of osteon's, not one of the Hub
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "adapter_model.safetensors",
                pack({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"format": "pt"}))
    write_text(folder / "adapter_config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def _unfit(name: str, layer: Layer, inside: set[str]) -> str:
    """Why PEFT cannot adapt a layer rightly; empty when it can."""
    if name in inside:
        return "is read by its attention and never called, so that an adapter on it would do nothing"
    if not isinstance(layer, nn.Conv2d):
        return ""
    if layer.groups > 1:
        return "is a grouped convolution, which PEFT cannot merge"
    if set(layer.dilation) != {1} or layer.padding_mode != "zeros":
        return "is dilated or padded in a way that PEFT's adapter does not follow"
    return ""


def fan_in(layer: Layer) -> int:
    """Numbers one output sees: in, or in * height * width of a convolution."""
    return layer.weight[0].numel()
