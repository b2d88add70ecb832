"""Reading the networks that were trained on generated tasks: one file each, with what was kept beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from osteon.core.errors import DataError, UsageError
from osteon.core.tensorfile import read_tensors

Network = TypeVar("Network", bound=nn.Module)


def load_learner(path: Path, build: Callable[..., Network], key: str, *, what: str,
                 verb: str) -> tuple[Network, dict[str, Any]]:
    """The network of a file, in evaluation mode, and what was kept beside it.

    Args:
        path: the file.
        build: makes the network from its options.
        key: under which the options were kept.
        what: the network is for, in messages.
        verb: that makes one.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, or holds another network.
    """
    fix = f"Make one: osteon {verb} --out FOLDER."
    if not path.is_file():
        raise UsageError(f"This folder holds no network {what}.", where=str(path.parent), fix=fix)
    state, meta = read_tensors(path)
    try:
        network = build(**meta[key])
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"The file holds another network: {error}", where=str(path), fix=fix) from error
    return network.eval(), meta
