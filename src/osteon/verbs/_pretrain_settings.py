"""Where the settings of ``osteon pretrain`` come from: ``--set``, a ``config.yaml``, and what was given by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteon.core import registry
from osteon.core.errors import UsageError, nearest
from osteon.core.plain import read_yaml
from osteon.data.codec import modality_options
from osteon.data.mixture import OPTIONS as MIXING
from osteon.train.guard import OPTIONS as CONTINUING
from osteon.train.settings import WISHES

_CONFIG = "Give a config.yaml such as `osteon pretrain` writes into its run folder."
#: settings of the data door that ``--set`` may change
DATA_SETTINGS = {"size": None, "limit": None, "max_skipped": 0.01, "modality": None}
#: what the user says of the data, which is recorded and changes nothing
STATED = ("data_license",)
#: training settings that are arguments of their own
ARGUMENTS = ("steps", "epochs", "batch_size", "accumulate", "precision", "seed")
#: arguments beside the settings that a ``config.yaml`` may stand in for
GIVEN = ("source", "objective", "backbone", "init", *ARGUMENTS, "guard")


def data_settings() -> set[str]:
    """Names of all settings of the data door: those of every source, and those of reading each modality."""
    return {*DATA_SETTINGS, *MIXING, *STATED, *modality_options()}


def opening(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the data's settings that opening a source takes."""
    return {**DATA_SETTINGS, **{key: value for key, value in settings.items() if key not in STATED}}


def sort_settings(settings: dict[str, Any], objective: str) -> dict[str, dict[str, Any]]:
    """Hand each ``--set`` key to the one door it belongs to: data, backbone.*, objective or training."""
    card = registry.find("objective", objective)
    doors: dict[str, set[str]] = {
        "data": data_settings(), "objective": {o.name for o in registry.options(card)} - {"backbone", "data"},
        "train": set(WISHES), "continue": {o.name for o in CONTINUING}}
    sorted_: dict[str, dict[str, Any]] = {"data": {}, "backbone": {}, "objective": {}, "train": {}, "continue": {}}
    for key, value in settings.items():
        prefix, dot, name = key.partition(".")
        door = prefix if dot else next((d for d, names in doors.items() if key in names), "")
        if door == "backbone" or (door in doors and (name or key) in doors[door]):
            sorted_[door][name or key] = value
        else:
            known = [k for names in doors.values() for k in sorted(names)]
            key = name if door in doors else key
            raise UsageError(f"Unknown setting '{key}'.{nearest(key, known)}", where="--set",
                             fix=f"`osteon methods {objective}` lists the options of the objective; options of the "
                                 "backbone are written backbone.NAME.")
    return sorted_


def merge_config(config: str | Path | None, **given: Any) -> dict[str, Any]:
    """Values of a ``config.yaml``, with what was given explicitly above them."""
    merged = dict(given)
    if config is None:
        return merged
    path = Path(config)
    try:
        stored = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"The configuration cannot be read: {error}", where=str(path), fix=_CONFIG) from error
    if not isinstance(stored, dict):
        raise UsageError("The configuration is not a mapping of names to values.", where=str(path), fix=_CONFIG)
    for key in stored:
        if key not in {*given, "data", "backbone_options", "objective_options", "train", "fingerprint", "continue"}:
            raise UsageError(f"Unknown key '{key!s:.200}'.{nearest(str(key), given)}", where=str(path), fix=_CONFIG)
    for key in ("data", "backbone_options", "objective_options", "train", "continue"):
        if not isinstance(stored.get(key) or {}, dict):
            raise UsageError(f"'{key}' is not a mapping of names to values.", where=str(path), fix=_CONFIG)
    for key in ("objective", "backbone", "init"):
        if not isinstance(stored.get(key) or "", str):
            raise UsageError(f"'{key}' is {stored[key]!r:.80} and not a name.", where=str(path), fix=_CONFIG)
    if given["objective"] is not None and stored.get("objective") != given["objective"]:
        stored["objective_options"] = None  # they were another objective's
    for key in ("objective", "backbone", "init"):
        if given[key] is None and stored.get(key) is not None:
            merged[key] = stored[key]
    train_settings = dict(stored.get("train") or {})
    for key in ("steps", "batch_size", "accumulate", "precision", "seed"):
        value = train_settings.pop(key, None)
        if given[key] is None and not (key == "steps" and given["epochs"] is not None):
            merged[key] = value
    # By their doors, since an objective and training may share a name (BYOL's momentum and SGD's).
    parts = {"data": stored.get("data"), "objective": stored.get("objective_options"), "train": train_settings,
             "backbone": stored.get("backbone_options")}
    if merged["init"] is not None:  # which it need not be: somebody may have taken the configuration for a new start
        going_on = dict(stored.get("continue") or {})
        watched = going_on.pop("guard_source", None)
        merged["guard"] = watched if given["guard"] is None else given["guard"]
        parts["continue"] = going_on
    merged["settings"] = {**{f"{door}.{k}": v for door, values in parts.items() for k, v in (values or {}).items()},
                          **given["settings"]}
    return merged
