"""Activation checkpointing: blocks keep their input alone and compute what is inside again in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.stochastic_depth import batch_gates

CARD = Card(
    kind="training",
    name="checkpointing",
    papers=("Training Deep Nets with Sublinear Memory Cost",),
    modalities=("any",),
    differs="segments are the network's own blocks, each computed again as a whole; the paper cuts a graph of single "
    "operations into about sqrt(n) parts and may recurse. Running statistics of normalisation move once, at the first "
    "pass; random numbers are drawn again as they were. Teachers have no graph and are not touched. Refused where a "
    "block's work depends on what is set for the pass only (drop_mode=batch, highway).",
    cost="one more forward pass of the blocks; memory of one block's inside instead of all",
    switch="--set checkpointing=true",
)


def blocks_of(network: nn.Module, spared: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """The blocks of a network, in its order: members of a list or a sequence that themselves consist of layers.

    Args:
        network: e.g. an objective with its backbone and decoder.
        spared: parts of it that are left out, such as teachers.
    """
    out: list[nn.Module] = []
    left = {id(m) for m in spared}

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if id(child) in left:
                continue
            if isinstance(module, nn.ModuleList | nn.Sequential) and _consists_of_layers(child):
                out.append(child)
            else:
                walk(child)

    walk(network)
    return list(dict.fromkeys(out))


def _consists_of_layers(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    return sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules()) > 1


class Checkpointing:
    """Has the blocks of a network keep their input only, for a while."""

    @contextmanager
    def inside(self, blocks: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, these blocks keep their input only, wherever gradients are recorded; the backward pass may come
        later."""
        with replaced(blocks, lambda block: partial(_light, block, block.forward)):
            yield


@contextmanager
def replaced(blocks: Iterable[nn.Module], make: Callable[[nn.Module], Callable[..., Any]]) -> Iterator[None]:
    """Inside, every block's forward pass is what ``make`` makes of it."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in before:
        block.forward = make(block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block, own in before:
            if own is None:
                del block.forward
            else:
                block.forward = own


def _light(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _as_it_was(block)),
                      **kwargs)


@contextmanager
def _as_it_was(block: nn.Module) -> Iterator[None]:
    """Inside, whatever a second pass does to buffers (running statistics) is done to copies."""
    held = [(m, name, b) for m in block.modules() for name, b in m._buffers.items() if b is not None]
    for module, name, buffer in held:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer


def refuse_checkpointing(network: nn.Module, *, highway: bool) -> None:
    """Say where blocks cannot be computed again.

    Raises:
        UsageError: there are no blocks, or their work depends on what is set for one pass only.
    """
    where = "--set checkpointing"
    if not blocks_of(network):
        raise UsageError("This network has no blocks to compute again.", where=where, fix="Leave it out.")
    if highway:
        raise UsageError("Highway-BP runs layers with graphs of its own, which cannot be left out.", where=where,
                         fix="Leave out checkpointing or highway.")
    if batch_gates(network):
        raise UsageError("drop_mode=batch shuts branches for one pass; computed again they would be open.",
                         where=where, fix="Use drop_mode=row, or leave checkpointing out.")
