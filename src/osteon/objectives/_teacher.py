"""A frozen network that a run left, for objectives that learn from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osteon.backbones import Backbone, build_backbone
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.parts.companion import freeze
from osteon.parts.types import DataSpec


def network_of(run: str, data: DataSpec, where: str) -> tuple[Backbone, dict[str, Any]]:
    """The network of a run, frozen and in evaluation mode, and what is stored beside it.

    Args:
        run: run folder.
        data: the data it is to read.
        where: the option that named it, for messages.
    """
    state, meta = RunFolder(Path(run)).load_model()
    made = meta["backbone"]
    if made["channels"] != data.channels:
        raise UsageError(f"The {where} was trained on {made['channels']} channels, the data have {data.channels}.",
                         where=f"--set {where}={run}")
    network = build_backbone(made["name"], channels=made["channels"], size=made["size"], **made["options"])
    network.load_state_dict(state)
    freeze(network)
    return network.eval(), meta
