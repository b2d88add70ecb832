"""PiSSA: LoRA that starts from each weight's largest singular values and freezes the rest.

Meng et al. 2024, arXiv:2404.02948, section 3. PEFT's implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from osteon.adapters._peft import RULES, PeftAdapter, fan_in, peft, write_peft_files
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Layer
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="pissa",
    papers=("PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",),
    modalities=("any",),
    differs="Exact singular value decomposition by default (niter for the fast one). The delta stores the starting "
    "pair beside the trained one, and PEFT's files hold the equal LoRA of rank 2 r, because a PiSSA pair alone is "
    "wrong on an untouched base. Linear layers only, so networks made of convolutions alone are refused.",
    rows=(359,),
    backbones=("tokens",),
    labels=True,
    cost="1 forward and backward per image; one decomposition a layer at the start",
)


class PiSSA(PeftAdapter):
    """LoRA that starts from each weight's largest singular values: ``W = W_rest + B A``, with ``B A`` the best rank r.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns of linear layers.
        rank: r, singular values a layer; at most the smaller side of each.
        niter: power iterations of the randomised decomposition; 0 = the exact one.
    """

    # Weight decay would pull to the rest of the weight, not to the pre-trained one.
    recipe: ClassVar = {**RECIPE, "lr": 1e-3}

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", rank: int = 8,
                 niter: int = 0) -> None:
        super().__init__(backbone, task)
        layers = self.choose(targets, convolutions=False)
        narrow = [name for name, layer in layers.items() if targets in RULES and min(layer.weight.shape) < rank]
        if 0 < len(narrow) < len(layers):  # e.g. the map of the three coordinates of a point
            layers = {name: layer for name, layer in layers.items() if name not in narrow}
            self.notes.append(f"{', '.join(narrow)}: left out, narrower than the rank {rank}")
        for name, layer in layers.items():
            if layer.weight.dim() != 2:
                raise UsageError(f"PiSSA decomposes linear layers; {name} is a convolution.", where="targets",
                                 fix="Leave it out, or use svfit.")
            if not 1 <= rank <= min(layer.weight.shape):
                raise UsageError(f"rank lies between 1 and the smaller side of each layer; {name} is "
                                 f"{tuple(layer.weight.shape)}.", where="--set rank")
        self.rank = rank
        kind = "pissa" if niter < 1 else f"pissa_niter_{niter}"
        self.wrap(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), bias="none",
                                  init_lora_weights=cast(Any, kind)), layers)
        for i, (a, b) in enumerate(self.pairs()):
            self.register_buffer(f"start_{i}_A", a.detach().clone())
            self.register_buffer(f"start_{i}_B", b.detach().clone())

    def count(self, layer: Layer) -> int:
        """r * (in + out)."""
        return self.rank * (fan_in(layer) + layer.weight.shape[0])

    def wrapped(self) -> list[Any]:
        """PEFT's layers, in the order of their names."""
        return [self.backbone.get_submodule(name) for name in self.shapes]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A (r, in) and B (out, r) of every layer."""
        return [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in self.wrapped()]

    def starts(self) -> list[tuple[Tensor, Tensor]]:
        """The A and B each layer started from."""
        return [(self.get_buffer(f"start_{i}_A"), self.get_buffer(f"start_{i}_B")) for i in range(len(self.shapes))]

    def state_kept(self) -> dict[str, Tensor]:
        """The starting pairs: what is left of the weight is the weight without them."""
        return {name: b for name, b in self.named_buffers() if name.startswith("start_")}

    @torch.no_grad()
    def load_delta(self, delta: Mapping[str, Tensor]) -> None:
        """Put a delta in place; the frozen rest of each weight follows the starting pair of that delta."""
        before = [(a.clone(), b.clone()) for a, b in self.starts()]
        super().load_delta(delta)
        for module, (a0, b0), (a, b) in zip(self.wrapped(), before, self.starts(), strict=True):
            # A decomposition is unique up to signs only, so another machine may have started from another pair.
            if not (torch.equal(a0, a) and torch.equal(b0, b)):
                module.get_base_layer().weight.add_(b0 @ a0 - b @ a)

    def write_peft(self, folder: Path) -> bool:
        """Write the equal plain LoRA of rank 2 r, ``[B, -B0] [A; A0]``, which fits the untouched base."""
        tensors = {}
        for name, (a, b), (a0, b0) in zip(self.shapes, self.pairs(), self.starts(), strict=True):
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat([a, a0])
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat([b, -b0], 1)
        write_peft_files(folder, peft.LoraConfig(r=2 * self.rank, lora_alpha=2 * self.rank, bias="none",
                                                 target_modules=list(self.shapes)), tensors)
        return True
