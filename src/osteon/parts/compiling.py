"""torch.compile for a network's blocks, one small graph a kind of block rather than one large one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from osteon.core.errors import UsageError
from osteon.parts.checkpointing import blocks_of, replaced


class Compiled:
    """Compiles the blocks of a network, each kind and shape once, and puts the result in their place for a while.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend
        self._made: dict[nn.Module, Callable[..., Any]] = {}

    @contextmanager
    def inside(self, blocks: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, these blocks run compiled; not where operations are being counted, which compiled code hides."""
        with replaced([] if torch._C._len_torch_dispatch_stack() else blocks, self._of):
            yield

    def _of(self, block: nn.Module) -> Callable[..., Any]:
        if block not in self._made:
            self._made[block] = torch.compile(block.forward, backend=self.backend)
        return self._made[block]


def refuse_compiling(network: nn.Module, device: torch.device, *, highway: bool) -> None:
    """Say where a network cannot be compiled.

    Raises:
        UsageError: no blocks, Highway-BP, a platform torch.compile does not support, or no compiler.
    """
    where = "--set compile"
    if not blocks_of(network):
        raise UsageError("This network has no blocks to compile.", where=where, fix="Leave it out.")
    if highway:
        raise UsageError("Highway-BP differentiates inside its own function, which torch.compile cannot follow.",
                         where=where, fix="Leave out compile or highway.")
    if not torch._dynamo.is_dynamo_supported():
        raise UsageError("torch.compile does not support this platform or this Python.", where=where,
                         fix="Leave it out.")
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise UsageError("torch.compile needs a C++ compiler on a CPU, and none is installed.", where=where,
                         fix="Install g++ or clang, or leave it out.")
