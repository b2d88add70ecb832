"""What the adapter contracts share: every registered adapter on every kind of backbone, small."""

from __future__ import annotations

import copy
import functools
import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.parts.adapter import Adapter
from osteon.parts.types import DataSpec, Step

TASK = DataSpec("image", 3, 32, (0.5,) * 3, (0.25,) * 3, num_classes=4)
#: options without which an adapter would be too large, or random, on networks this small
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "pissa": {"rank": 4}, "hra": {"rank": 4}, "flora_tucker": {"rank": 4, "dropout": 0.0},
    "vqt": {"dropout": 0.0}, "visual_prompt": {"prompts": 3}}
#: adapters that begin as the pre-trained network
EQUAL = {"linear", "full", "bias", "lora", "svfit", "vectorfit", "pissa", "hra", "flora_tucker", "diff_pruning"}
#: transformers lays out its blocks differently from what it needs
REFUSED = {("vqt", "hf_vit")}
NETWORKS = ("vit", "resnet", "timm_vit", "timm_resnet", "timm_convnext", "hf_vit")
TOKENS = {"vit", "timm_vit", "hf_vit"}


@functools.cache
def _network(name: str) -> Backbone:
    torch.manual_seed(0)
    if name == "vit":
        return build_backbone("vit_tiny", channels=3, size=32, dim=32, depth=3, heads=2, patch=8)
    if name == "resnet":
        return build_backbone("resnet_tiny", channels=3, size=32, widths=(8, 12, 16), depths=(1, 1, 1))
    if name == "timm_vit":
        return build_backbone("timm:vit_tiny_patch16_224", channels=3, size=32, patch_size=8, embed_dim=32, depth=3,
                              num_heads=2)
    if name == "timm_resnet":
        return build_backbone("timm:test_resnet", channels=3, size=32, zero_init_last=False)
    if name == "timm_convnext":
        return build_backbone("timm:convnext_tiny", channels=3, size=32, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
    from transformers import ViTConfig

    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32,
                       patch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return build_backbone(f"hf:{folder}", channels=3, size=32)


def network(name: str) -> Backbone:
    """A network of its own, in evaluation mode, with weights that are always the same and no dead parts."""
    made = copy.deepcopy(_network(name)).eval()
    with torch.no_grad():  # statistics and offsets that are not at their neutral start
        generator = torch.Generator().manual_seed(1)
        for key, value in made.state_dict().items():
            if key.endswith(("bias", "running_mean")):
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made


def names() -> list[str]:
    """Every registered adapter."""
    return [card.name for card in registry.cards(kind="adapter")]


def pairs() -> list[tuple[str, str]]:
    """(adapter, network) for every combination an adapter claims."""
    return [(card.name, net) for card in registry.cards(kind="adapter") for net in NETWORKS
            if fits(card.name, net)]


def fits(adapter: str, net: str) -> bool:
    """Whether an adapter is to work on a network."""
    kinds = registry.find("adapter", adapter).backbones
    return (net in TOKENS or "maps" in kinds) and (adapter, net) not in REFUSED


def make(name: str, net: str | Backbone, seed: int = 0, **options: Any) -> Adapter:
    """Build an adapter with small options."""
    torch.manual_seed(seed)
    backbone = network(net) if isinstance(net, str) else net
    made: Adapter = registry.build("adapter", name, backbone, TASK, **{**OPTIONS.get(name, {}), **options})
    return made


def images(count: int = 8, seed: int = 5) -> Tensor:
    """Normalised noise, (B, 3, 32, 32)."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def train(adapter: Adapter, steps: int = 4, lr: float = 1e-2, seed: int = 5) -> set[str]:
    """A few steps on one batch; returns the names of parameters that gradient reached."""
    x, y = images(seed=seed), torch.arange(8) % TASK.num_classes
    adapter.train()
    optimizer = torch.optim.Adam(list(adapter.trainable().values()), lr=lr)
    reached: set[str] = set()
    for index in range(steps):
        loss = F.cross_entropy(adapter(x), y)
        extra = adapter.penalty()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        reached |= {n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        adapter.after_step(Step(index, steps))
    adapter.eval()
    return reached


@functools.cache
def trained(name: str, net: str) -> tuple[Adapter, frozenset[str], dict[str, Tensor]]:
    """A trained adapter (not to be changed), what gradient reached, and its state before training."""
    adapter = make(name, net)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    reached = train(adapter)
    return adapter, frozenset(reached), before
