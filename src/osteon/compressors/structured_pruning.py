"""Structured pruning: remove whole channels, hidden units and attention heads, the least important or random ones.

Fang et al. 2023 (DepGraph), arXiv:2301.12900, section 3, by torch-pruning. Random choice as the control: Liu et al.
2022, arXiv:2202.02643.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from osteon.compressors._distil import RECIPE, match_features
from osteon.core.card import Card
from osteon.core.errors import MissingExtra, UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.norm import BatchNorm
from osteon.parts.surgery import note_edits, shape_edit

try:
    import torch_pruning
except ImportError as error:
    raise MissingExtra("torch-pruning", "compress", why="Structured pruning") from error

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="structured_pruning",
    papers=("DepGraph: Towards Any Structural Pruning",
            "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="Only widths inside a block are pruned (hidden units, inner channels, whole heads), all groups by the "
    "same share, so that the width of the features stays; DepGraph also prunes the residual stream. importance=random"
    " takes from the second paper that the choice is random at a fixed share a layer; there single weights are masked"
    " before training, here structures of a trained network are removed.",
    rows=(334,),
    cost="seconds; with recover, 2 forwards and 1 backward per image",
)

#: a set of channels that go together: how many, their importance, and a function that removes some
Group = tuple[int, Tensor, Callable[[list[int]], None]]


class StructuredPruning(Compressor):
    """Remove the least important channels, hidden units and attention heads until the budget is met.

    Args:
        importance: ``magnitude``: squared weights of everything that would go (L2); ``random``: the control.
        recover: train the rest to give the original's features, for the steps of the training settings.
        augment: views to recover on: ``crop_flip`` or ``none``.
    """

    recipe: ClassVar[dict[str, Any]] = RECIPE

    def __init__(self, *, importance: Literal["magnitude", "random"] = "magnitude", recover: bool = False,
                 augment: Literal["crop_flip", "none"] = "crop_flip") -> None:
        super().__init__()
        self.importance, self.recover, self.augment = importance, recover, augment

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Search the share, prune, record the new shapes."""
        trainer = self.trainer(fit) if self.recover else None
        result, share = search(self.name, backbone, budget, lambda s: self.prune(backbone, s, seed))
        note_edits(result, [shape_edit(backbone, result)])
        self.notes.append(f"{100 * share:.1f} % of every group of inner channels and heads were removed")
        if trainer is not None:
            match_features(result, backbone, calibration, trainer, self.recipe, self.augment)
        return result

    def prune(self, backbone: Backbone, share: float, seed: int) -> Backbone:
        """A copy without ``share`` of every group; one channel, unit or head of each always stays."""
        network = copy.deepcopy(backbone)
        draws = torch.Generator().manual_seed(seed)
        for count, score, remove in groups(network):
            if self.importance == "random":
                score = torch.rand(count, generator=draws)
            gone = min(count - 1, round(share * count))
            if gone:
                remove(sorted(score.argsort(stable=True)[:gone].tolist()))
        return network


def groups(network: Backbone) -> list[Group]:
    """Groups of channels inside blocks: those of one producing layer and at least one consuming layer, and heads.

    Raises:
        UsageError: there are none.
    """
    found = [*_heads(network), *_channels(network)]
    if not found:
        raise UsageError(f"{network.name} has no inner channels or heads that could be removed.",
                         where="structured_pruning", fix="Use pela or int8.")
    return found


def _heads(network: nn.Module) -> list[Group]:
    """Heads of attentions with a fused ``qkv`` and an output projection, as osteon's and timm's have."""
    found: list[Group] = []
    for module in network.modules():
        qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
        heads = getattr(module, "num_heads", 0)
        if isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and heads > 1 \
                and qkv.out_features == 3 * proj.in_features:
            size = proj.in_features // heads
            score = (qkv.weight.detach().square().flatten(1).sum(1).view(3, heads, size).sum((0, 2))
                     + proj.weight.detach().square().sum(0).view(heads, size).sum(1))
            found.append((heads, score, _head_remover(module, qkv, proj, heads, size)))
    return found


def _head_remover(module: nn.Module, qkv: nn.Linear, proj: nn.Linear, heads: int,
                  size: int) -> Callable[[list[int]], None]:
    def remove(gone: list[int]) -> None:
        columns = [h * size + i for h in gone for i in range(size)]
        rows = [part * heads * size + c for part in range(3) for c in columns]
        torch_pruning.prune_linear_out_channels(qkv, rows)
        torch_pruning.prune_linear_in_channels(proj, columns)
        attention: Any = module
        attention.num_heads = heads - len(gone)
        for name in ("attn_dim", "all_head_size"):
            if hasattr(attention, name):
                setattr(attention, name, attention.num_heads * size)
    return remove


def _channels(network: Backbone) -> list[Group]:
    """Groups by torch-pruning's dependency graph; those of one producer do not touch the residual stream."""
    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():  # the graph is read off autograd's
        warnings.simplefilter("ignore")  # it reports parameters outside layers, which these groups do not touch
        graph.build_dependency(network, network.example(2), output_transform=lambda features: features.pooled,
                               customized_pruners={BatchNorm: _OurNorm()})
        candidates = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    attention = {id(m.qkv) for m in network.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)}
    found: list[Group] = []
    for group in candidates:
        root = group[0].dep.target.module
        makers = [d for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)
                  and isinstance(d.target.module, nn.Conv2d | nn.Linear)]
        takers = [d for d, _ in group if graph.is_in_channel_pruning_fn(d.handler)
                  and isinstance(d.target.module, nn.Conv2d | nn.Linear)]
        grouped = any(getattr(d.target.module, "groups", 1) > 1 for d, _ in group)
        if len(makers) != 1 or not takers or grouped or id(root) in attention or _in_attention(network, root):
            continue
        count = int(root.weight.shape[0])
        score = root.weight.detach().square().flatten(1).sum(1)
        for taker in takers:
            weight = taker.target.module.weight.detach().square()
            score = score + weight.transpose(0, 1).flatten(1).sum(1).view(count, -1).sum(1)
        found.append((count, score, _channel_remover(graph, root)))
    return found


class _OurNorm(torch_pruning.function.BatchnormPruner):
    """osteon's BatchNorm counts its features in ``channels``; everything else is named as in PyTorch's."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> nn.Module:
        """Remove features."""
        keep = sorted(set(range(layer.channels)) - set(idxs))
        layer.channels = len(keep)
        for name in ("running_mean", "running_var"):
            setattr(layer, name, getattr(layer, name)[keep])
        for name in ("weight", "bias"):
            value = getattr(layer, name)
            if value is not None:
                setattr(layer, name, nn.Parameter(value.detach()[keep]))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        """How many there are."""
        return int(layer.channels)

    def get_in_channels(self, layer: Any) -> int:
        """As many."""
        return int(layer.channels)


def _in_attention(network: nn.Module, layer: nn.Module) -> bool:
    """Separate queries, keys and values are left whole: their widths hang together through the heads."""
    name = next(n for n, m in network.named_modules() if m is layer)
    return isinstance(layer, nn.Linear) and any("attention" in part or "attn" in part
                                                for part in name.split(".")[:-1])


def _channel_remover(graph: Any, root: nn.Module) -> Callable[[list[int]], None]:
    handler = (torch_pruning.prune_linear_out_channels if isinstance(root, nn.Linear)
               else torch_pruning.prune_conv_out_channels)

    def remove(gone: list[int]) -> None:
        graph.get_pruning_group(root, handler, gone).prune()
    return remove
