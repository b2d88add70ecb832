"""What an adapted run stores, and how base and delta become one network again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.core.licences import entry
from osteon.core.plain import plain
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.parts.adapter import Adapter
from osteon.parts.members import spec_from
from osteon.parts.types import DataSpec, Features
from osteon.verbs._model import Trained, behind_head, is_ours, load_trained

DELTA = "delta.safetensors"
#: folder inside the run with the adapter in PEFT's format, where it has one
PEFT = "peft"


@dataclass
class Base:
    """The network an adapter is built on.

    Args:
        backbone: the network.
        spec: what it was trained with, when that is known.
        reference: how to find it again: ``{"run": PATH}`` or name, options and seed of a public one.
        name: what to call it.
        origins: where its weights come from, with their licences; empty: they are random.
    """

    backbone: Backbone
    spec: DataSpec | None
    reference: dict[str, Any]
    name: str
    origins: list[dict[str, Any]] = field(default_factory=list)


def open_run(run: str | Path, head_layer: int = 0) -> Base | None:
    """The base in a run folder or exported folder; None when ``run`` names a public model.

    Args:
        run: the folder.
        head_layer: end behind this layer of the run's projection head; 0: without it.

    Raises:
        UsageError: an adapted run that leaves no network of its own, or a head that is not there.
    """
    text = str(run)
    if text.startswith(("timm:", "hf:")):
        return None
    if not is_ours(run):
        if (Path(run) / "config.json").is_file():
            return None
        raise UsageError(f"There is no run at {run}.", where=text,
                         fix="Give a run folder, an exported folder, timm:NAME or hf:NAME.")
    trained = load_trained(run)
    if trained.adapter is not None and not trained.adapter.mergeable:
        raise UsageError(f"{run} holds an adapter that works beside its backbone: there is no network to adapt "
                         "further.",                          where=text, fix="Adapt the run it was made from.")
    behind_head(run, trained, head_layer)
    reference = {"run": str(Path(run).resolve()), **({"head_layer": head_layer} if head_layer else {})}
    return Base(trained.backbone, trained.spec, reference, trained.name, [entry(run)])


def open_public(name: str, *, channels: int, size: int, options: Mapping[str, Any], seed: int) -> Base:
    """A model of timm or transformers with its published weights, unless ``pretrained=False`` is asked for."""
    full = name if name.startswith(("timm:", "hf:")) else f"hf:{Path(name).resolve()}"
    wishes = {"pretrained": True, **options}
    torch.manual_seed(seed)
    backbone = build_backbone(full, channels=channels, size=size, **wishes)
    full = backbone.origin["name"] if backbone.origin else full  # to the commit: it is opened again as it was
    return Base(backbone, None, {"name": full, "channels": channels, "size": size, "options": plain(wishes),
                                 "seed": seed}, full, [backbone.origin] if backbone.origin else [])


def reopen(reference: Mapping[str, Any]) -> Base:
    """The base a delta refers to.

    Raises:
        DataError: it is not where it was.
    """
    if "run" not in reference:
        return open_public(reference["name"], channels=reference["channels"], size=reference["size"],
                           options=reference["options"], seed=reference["seed"])
    path = Path(reference["run"])
    if not path.is_dir():
        raise DataError("The base of this adapted run is not where it was.", where=str(path),
                        fix="Put it back there, or load the delta onto it yourself with Adapter.load_delta.")
    found = open_run(path, reference.get("head_layer", 0))
    assert found is not None
    return found


def save_adapted(run: RunFolder, adapter: Adapter, base: Base, spec: DataSpec, made: Mapping[str, Any],
                 meta: Mapping[str, Any]) -> None:
    """Write the delta (and PEFT's files) of a trained adapter.

    Args:
        run: where.
        adapter: trained adapter.
        base: what it was built on.
        spec: statistics, size and classes.
        made: ``name`` and ``options`` of the adapter.
        meta: anything else worth keeping.
    """
    adapter.write_peft(run.path / PEFT)
    write_tensors(run.path / DELTA, adapter.delta(), plain({
        "adapter": made, "base": {**base.reference, "fingerprint": adapter.fingerprint}, "data": asdict(spec), **meta}))


def load_adapted(path: Path) -> Trained:
    """The network an adapted run stands for: its base with its delta, merged where the method rewrites weights.

    Raises:
        DataError: the base is gone.
        UsageError: the base is not the one the delta was trained on.
    """
    delta, meta = read_tensors(path / DELTA)
    base = reopen(meta["base"])
    spec = spec_from(meta["data"])
    adapter = rebuild(base.backbone, spec, meta["adapter"], delta)
    backbone = adapter.merge() if adapter.mergeable else _Beside(adapter)
    return Trained(backbone.eval(), spec, meta, path.name, adapter)


def rebuild(backbone: Backbone, spec: DataSpec, made: Mapping[str, Any], delta: Mapping[str, Tensor]) -> Adapter:
    """An adapter with a stored delta, in evaluation mode."""
    adapter: Adapter = registry.build("adapter", made["name"], backbone, spec, **made["options"])
    adapter.load_delta(delta)
    return adapter.eval()


class _Beside(Backbone):
    """A backbone whose pooled features are those of an adapter that works beside it."""

    def __init__(self, adapter: Adapter) -> None:
        inner = adapter.backbone
        super().__init__(inner.name, channels=inner.channels, size=inner.size, options=copy.deepcopy(inner.options))
        self.kind, self.token_dim, self.stride = inner.kind, inner.token_dim, inner.stride
        self.dim = adapter.head.in_features
        self.adapter = adapter

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, H, W) -> the backbone's features with what the adapter makes of them as the pooled ones."""
        if keep is not None or mask is not None:
            raise self._refuse("masks: an adapter works beside it", "Use the run it was made from.")
        return replace(self.adapter.backbone(x), pooled=self.adapter.encode(x))

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """There is no plain network to store."""
        raise self.adapter._refuse_merge()
