"""Reading several modalities at once: a manifest with one column a modality, cells of which may be empty."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from osteon.core.errors import DataError
from osteon.data._numbers import list_numbers
from osteon.data.changes import stamp
from osteon.data.codec import Codec, PlanLike, check_options, codec
from osteon.data.listing import Listing, RawLabel, Skipped, digest, unique_ids
from osteon.data.tables import _split_labels, columns_of, further, read_rows
from osteon.modalities import NAMES, Payload, Unreadable
from osteon.modalities.several import RULES
from osteon.parts.members import Members, plain_spec
from osteon.parts.types import DataSpec

#: Modalities a manifest may have a column of.
MEMBERS = tuple(name for name in NAMES if name not in ("several", "table"))
#: Other names of such a column.
_ALIASES = {"audio": "sound", "caption": "text", "picture": "image", "point": "points", "cloud": "points"}
#: Options of ``--set``: those of every member's modality.
OPTIONS: dict[str, Any] = {key: value for name in NAMES if name != "several"
                           for key, value in codec(name).options.items()}

#: Member -> what a source holds of it, None where it is missing.
Bundle = dict[str, Any]


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The sets of a csv manifest with at least two columns of modalities, or None when it is none.

    Read like a model of several, a source of one of its modalities is a list of sets with that member alone.
    """
    found = _manifest(path, source) if path.suffix.lower() in (".csv", ".tsv") and path.is_file() else None
    if found is not None or not asked:
        return found
    if like is not None:
        return _of_one(source, like, options or {})
    raise DataError("The source holds no sets.", where=source, fix="Several modalities are a csv manifest with a "
                    f"column each, e.g. image,sound,label; known columns: {', '.join(MEMBERS)}.")


def _manifest(path: Path, source: str) -> Listing | None:
    """Cells are paths relative to the manifest, of text also the text itself; an empty one is a missing member."""
    try:
        rows = read_rows(path, source)
        _, header = next(rows)
    except DataError:
        return None
    columns = {name.strip().lower(): i for i, name in enumerate(header)}
    names = {_ALIASES.get(name, name): i for name, i in columns.items() if _ALIASES.get(name, name) in MEMBERS}
    if len(names) < 2:
        return None
    columns_of(header, source)
    body = list(rows)
    members = [_ALIASES.get(name, name) for name in columns if _ALIASES.get(name, name) in MEMBERS]
    twice = next((name for name in names if members.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"Two columns hold the member '{twice}': it occurs twice.", where=source,
                        fix="Remove one of them.")
    for line, row in body:
        if len(row) != len(header):
            raise DataError(f"Row {line} has {len(row)} cells, the header has {len(header)}.", where=source,
                            fix="Put cells that contain the separator in double quotes.")
        if not any(row[i].strip() for i in names.values()):
            raise DataError(f"Row {line} has none of {', '.join(names)}.", where=source, fix="Remove the row.")
    if not body:
        raise DataError("The manifest has a header and no rows.", where=source, fix="Add a row for every set.")

    def cell(name: str, text: str) -> Any:
        text = text.strip()
        if not text:
            return None
        if name == "text" and not _is_file(path.parent, text):
            return text.encode()
        return path.parent / text

    bundles = [{name: cell(name, row[i]) for name, i in names.items()} for _, row in body]

    def column(name: str) -> list[str] | None:
        return [row[columns[name]].strip() for _, row in body] if name in columns else None

    key = next((k for k in ("label", "labels") if k in columns), None)
    labels: list[RawLabel] | None = _split_labels(column(key) or [], key == "labels") if key else None
    given = column("id")
    ids = given or [next(row[i].strip() for i in names.values() if row[i].strip())[:120] for _, row in body]
    files = [value for bundle in bundles for value in bundle.values() if isinstance(value, Path)]
    return Listing(source, unique_ids(name.replace(os.sep, "/") for name in ids), lambda i: cast(Payload, bundles[i]),
                   stamp([path, *files]), labels=labels,
                   groups=column("group") or column("speaker"), split=column("split"), modality="several",
                   extra=further(columns.keys() - set(names), column),
                   traits={"names": list(names)})


def _is_file(folder: Path, text: str) -> bool:
    """Whether a cell names a file rather than being the text; the system may refuse to look at a long one."""
    try:
        return len(text) < 1024 and "\n" not in text and (folder / text).is_file()
    except (OSError, ValueError):
        return False


def _of_one(source: str, like: DataSpec, options: Mapping[str, Any]) -> Listing:
    """A source of one member's modality, all other members missing."""
    door, members = importlib.import_module("osteon.data.source"), Members.of(like.traits)
    name = door.list_raw(source).modality
    if name not in members.names:
        return alone(Listing(source, [], lambda i: b"", "", modality=name), like)
    return alone(door.list_raw(source, name, options, members[members.names.index(name)].spec), like)


def alone(one: Listing, like: DataSpec) -> Listing:
    """The sets of a source of one modality: that member alone. Raises DataError where ``like`` has no such member."""
    names = Members.of(like.traits).names
    if one.modality not in names:
        raise DataError(f"The model was trained on {', '.join(names)}; this source holds {one.modality}.",
                        where=one.source, fix="Give one of these, or a manifest with a column each.")
    return replace(one, payload=lambda i: cast(Payload, {one.modality: one.payload(i)}), modality="several",
                   traits={"names": names}, measured=None, stamp=digest("several", one.stamp),
                   notes=[*one.notes, f"members: {one.modality} alone, the other {len(names) - 1} missing"])


def cut(listing: Listing, *, like: DataSpec | None, options: Mapping[str, Any]) -> Listing:
    """The same sets with every member as its modality hands it over: texts as tokens of one vocabulary."""
    known = {} if like is None else {m.name: m.spec for m in Members.of(like.traits)}
    names = list(known) or listing.traits["names"]
    bundles = [dict(cast(Bundle, listing.payload(i))) for i in range(len(listing.ids))]
    gone: dict[int, str] = {}
    traits, notes, stamps = dict[str, dict[str, Any]](), list(listing.notes), [listing.stamp]
    for name in names:
        rows = [i for i, bundle in enumerate(bundles) if bundle.get(name) is not None]
        traits[name] = dict(known[name].traits) if known else {}
        reader = getattr(importlib.import_module(f"osteon.data.{name}"), "cut", None)
        if reader is None or not rows:
            continue
        texts = [bundles[i][name] for i in rows]
        part = Listing(listing.source, [str(i) for i in rows], texts.__getitem__, listing.stamp, modality=name,
                       traits={"documents": "file"})
        asked = _own(name, options)
        asked |= {"documents": "file"} if "documents" in asked else {}
        made = reader(part, like=known.get(name), options=asked)
        for k, i in enumerate(map(int, made.ids)):
            bundles[i] = {**bundles[i], name: made.payload(k)}
        gone |= {int(s.id): f"{name} {s.reason}" for s in made.skipped}
        traits[name], stamps = dict(made.traits), [*stamps, made.stamp]
        notes += [f"{name}: {note}" for note in made.notes]
    there = {name: sum(bundle.get(name) is not None for bundle in bundles) for name in names}
    notes.append("members: " + ", ".join(f"{name} ({there[name]:,} of {len(bundles):,})" for name in names))
    kept = [i for i in range(len(bundles)) if i not in gone]
    taken = listing.take(kept)
    return replace(taken, payload=lambda k: cast(Payload, bundles[kept[k]]), stamp=digest(*stamps, *names), notes=notes,
                   traits={"names": names, "own": traits},
                   skipped=[*listing.skipped, *(Skipped(listing.ids[i], why) for i, why in sorted(gone.items()))])


def _own(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a member's modality: those that were asked for, and its own defaults."""
    known = codec(name).options
    return check_options(name, {k: v for k, v in options.items() if k in known and v != OPTIONS[k]})


@dataclass
class SetPlan:
    """One shape for every member.

    Args:
        members: member -> the plan of its modality.
        traits: what is to be remembered: the members, their statistics once they are measured.
        rejected: number of a set -> why it cannot be used.
        notes: every choice with its rule.
        known: statistics come from the data the model was trained on.
    """

    members: dict[str, PlanLike]
    traits: dict[str, Any]
    rejected: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: bool = False
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a packed sample."""
        return (1, len(self.members) + sum(int(np.prod(plan.shape)) for plan in self.members.values()))


def _header(payload: Any) -> Bundle:
    """The headers of the members that are there, None for the others."""
    return {name: None if value is None else _named(name, codec(name).header, value)
            for name, value in payload.items()}


def _named(name: str, work: Any, *values: Any) -> Any:
    try:
        return work(*values)
    except Unreadable as reason:
        raise Unreadable(f"{name} {reason}") from reason


def _plan(headers: dict[int, Bundle], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> SetPlan:
    """The plan of every member's modality from the sets that have it."""
    known = {} if like is None else {m.name: m.spec for m in Members.of(like.traits)}
    names = list(known) or list(dict.fromkeys(name for header in headers.values() for name in header))
    plan = SetPlan({}, {"members": {name: plain_spec(spec) for name, spec in known.items()}}, known=like is not None)
    for name in names:
        own = {i: header[name] for i, header in headers.items() if header.get(name) is not None}
        if not own and name not in known:
            raise DataError(f"No set has a usable member '{name}'.", where=source, fix="Remove its column.")
        if not own:
            plan.members[name] = _Absent((known[name].channels, *known[name].extent))
            continue
        asked = _own(name, options)
        plan.members[name] = codec(name).plan(own, size=size if name == "image" else None,
                                              like=known.get(name), source=source, options=asked)
        plan.rejected |= {i: f"{name} {why}" for i, why in plan.members[name].rejected.items()}
        plan.notes += [f"{name}: {note}" for note in plan.members[name].notes]
    return plan


@dataclass
class _Absent:
    """Plan of a member that no set of a source has."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    rejected: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _convert(payload: Any, plan: SetPlan) -> np.ndarray:
    parts = [np.array([payload.get(name) is not None for name in plan.members], np.float32)]
    for name, own in plan.members.items():
        value = payload.get(name)
        parts.append(np.zeros(int(np.prod(own.shape)), np.float32) if value is None else
                     _named(name, codec(name).convert, value, own).astype(np.float32).ravel())
    return np.concatenate(parts)[None]


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """A packed sample is left as it is: its members have statistics of their own."""
    return (0.0,), (1.0,), 1.0


def _settle(plan: SetPlan, samples: np.ndarray) -> None:
    """Statistics of every member over the sets that have it."""
    if plan.known:
        return
    place = Members.place((name, DataSpec(name, own.shape[0], max(own.shape[1:]), (), (), shape=tuple(own.shape[1:])))
                          for name, own in plan.members.items())
    for member in place:
        own = plan.members[member.name]
        there, values = place.split(samples, member)
        mean, std, scale = codec(member.name).measure(values[there].astype(own.dtype))
        std = tuple(1.0 if s < 1e-8 else s for s in std)
        spec = replace(member.spec, mean=tuple(mean), std=std, scale=scale, traits=dict(getattr(own, "traits", {})))
        plan.traits["members"][member.name] = plain_spec(spec)


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"numbers": list_numbers}
CODEC = Codec(_header, _plan, _convert, _measure, OPTIONS, RULES, _settle)
