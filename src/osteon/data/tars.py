"""Tar shards in the WebDataset layout, read in place: a listing of (tar, offset, length), so that any sample can be
read at any time and a run resumes exactly in the middle of a shard. Nothing is ever unpacked, and no pickle is read.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, BinaryIO

from osteon.core.errors import DataError
from osteon.data._tar_members import Member, read_members
from osteon.data.changes import stamp, watch
from osteon.data.folders import Walk, by_place, show, walk
from osteon.data.listing import Listing, RawLabel, Skipped, there
from osteon.data.tables import split_of
from osteon.modalities import NAMES, find, one_of

#: Modalities whose samples are read from bytes without the name of a file.
MODALITIES = ("image", "sound")
#: Endings of what is a tar, and of tars that are refused because no place in them can be read by itself.
TAR, PACKED = ".tar", (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
#: Most shards one pattern may name.
MOST_SHARDS = 100_000
#: Bytes of the largest label that is read.
MOST_LABEL = 1024 * 1024
#: Texts of ``.txt`` members are classes where there are at most so many, none of them longer.
MOST_CLASSES, LONGEST_CLASS = 10_000, 200
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
#: Endings of what may stand beside a sample.
BESIDE = ("cls", "json", "txt")


def is_pattern(name: str) -> bool:
    """Whether a name stands for several shards, such as ``data/shard-{000..099}.tar``."""
    return _RANGE.search(name) is not None and name.lower().endswith((TAR, *PACKED))


def find_tars(path: Path, source: str) -> Walk | None:
    """The tars a path means: a pattern, a tar, or a folder of them where nothing else could be samples; else None."""
    if not there(str(path)):
        return _named(path, source) if is_pattern(str(path)) else None
    if path.is_file():
        return Walk(path.parent, [((path.name,), 0, (0, 0))]) if path.name.lower().endswith((TAR, *PACKED)) else None
    if not path.is_dir():
        return None
    found = walk(path, frozenset((TAR,)))
    known = {".parquet", ".nii.gz"}.union(*(getattr(find(modality), "SUFFIXES", ()) for modality in NAMES
                                            if modality != "text"))
    return found if found.files and not known & set(found.others) else None


def _named(pattern: Path, source: str) -> Walk:
    files = [Path(text) for text in expand(str(pattern), source)]
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise DataError(f"{len(gone):,} of {len(files):,} shards are not there, the first is {gone[0].name}.",
                        where=source, fix="Give the numbers that exist.")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return Walk(root, [(file.relative_to(root).parts, 0, (0, 0)) for file in files])


def expand(name: str, source: str) -> list[str]:
    """The names a pattern stands for, in order and each once: ``{000..099}`` counts, ``{a,b}`` chooses."""
    parts: list[Sequence[str]] = []
    place, total = 0, 1
    for match in _RANGE.finditer(name):
        choices: Sequence[str] = (match[3] or "").split(",")
        if match[3] is None:
            first, last = int(match[1]), int(match[2])
            width = len(match[1]) if match[1].startswith("0") else 0
            choices = [f"{i:0{width}d}" for i in range(first, min(last, first + MOST_SHARDS) + 1)]
            if not choices:
                raise DataError(f"'{match[0]}' counts down.", where=source, fix="Write the lower number first.")
        parts += [[name[place:match.start()]], choices]
        place, total = match.end(), total * len(choices)
    if total > MOST_SHARDS:
        raise DataError(f"The pattern names more than {MOST_SHARDS:,} shards.", where=source,
                        fix="Name the folder that holds them.")
    return list(dict.fromkeys("".join(text) for text in product(*parts, [name[place:]])))


def list_tars(found: Walk, source: str, modality: str | None = None) -> Listing:
    """The samples in tars, one a member or, where labels lie beside them, one a name up to its first dot.

    Args:
        found: the tars.
        source: as given by the user.
        modality: of the samples; that of most members of the first tar when None.
    """
    if modality is not None and modality not in MODALITIES:
        raise DataError(f"From tars come {' and '.join(MODALITIES)}, not {modality}.", where=source,
                        fix="Unpack them into a folder.")
    files = [found.root.joinpath(*parts) for parts, _, _ in found.files]
    chosen = modality or _modality(files)
    shards = _Shards(chosen, frozenset(importlib.import_module(f"osteon.modalities.{chosen}").SUFFIXES), found.skipped)
    watch(*files)
    for file, (parts, _, _) in zip(files, found.files, strict=True):
        shards.add(file, show(parts), split_of(file, found.root) if len(files) > 1 else "")
    return shards.listing(files, source, stamp(files, "tars-1"))


def _modality(files: Sequence[Path]) -> str:
    known = {end: name for name in MODALITIES
             for end in importlib.import_module(f"osteon.modalities.{name}").SUFFIXES}
    counts = Counter(known.get(_last(member.name)) for member, _ in islice(read_members(files[0]), 1000))
    return max(MODALITIES, key=lambda name: counts[name])


def _last(name: str) -> str:
    """The ending of a member's name, in lower case."""
    return os.path.splitext(name.lower())[1]


def _key(name: str) -> tuple[str, str]:
    """What members of one sample share (the name up to the first dot of its last part), and the rest in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, end = base.partition(".")
    return folder + slash + stem, end.lower()


@dataclass
class _Tar:
    """What one tar holds, before its members are put together."""

    media: dict[str, tuple[int, int]] = field(default_factory=dict)
    beside: dict[str, dict[str, Any]] = field(default_factory=lambda: {end: {} for end in BESIDE})
    wrong: dict[str, str] = field(default_factory=dict)


class _Shards:
    """Gathers the samples of one tar after another, in little memory."""

    def __init__(self, modality: str, suffixes: frozenset[str], skipped: Sequence[Skipped]) -> None:
        self.modality, self.suffixes, self.samples = modality, suffixes, find(modality).SAMPLES
        self.places: list[str] = []
        self.names: list[str] = []
        self.shard, self.offset, self.length = array("l"), array("q"), array("q")
        self.labels: list[RawLabel] = []
        self.texts: list[RawLabel] = []
        self.groups: list[str] = []
        self.split: list[str] = []
        self.skipped = list(skipped)
        self.others: Counter[str] = Counter()
        self.known: dict[str, str] = {}
        self.classes: set[str] | None = set()  # texts of .txt members; None once they cannot be classes
        self.further = self.unclosed = self.plain = 0

    def add(self, file: Path, place: str, split: str) -> None:
        """The samples of one more tar."""
        tar = _Tar()
        for member, opened in read_members(file):
            if self._counts(member, place):
                self._take(tar, member._replace(name=member.name.removeprefix("./")), opened, place)
        chosen = {name: name for name in tar.media}
        if any(tar.beside.values()):
            chosen = self._grouped(tar, place)
        else:
            self.plain += 1
        for key, name in chosen.items():
            if key in tar.wrong:
                self.skipped.append(Skipped(f"{place}/{name}", tar.wrong[key]))
                continue
            label, group, part = tar.beside["json"].get(key, (None, "", ""))
            self.names.append(name)
            self.shard.append(len(self.places))
            self.offset.append(tar.media[name][0])
            self.length.append(tar.media[name][1])
            self.labels.append(tar.beside["cls"].get(key, label))
            self.texts.append(tar.beside["txt"].get(key))
            self.groups.append(group)
            self.split.append(part or split)
        self.places.append(place)

    def _counts(self, member: Member, place: str) -> bool:
        """Whether a member is a file that may be read; what is not is told, but for folders and hidden names."""
        if member.kind == "unclosed":
            self.unclosed += 1
        elif member.kind not in ("file", "folder"):
            self.skipped.append(Skipped(f"{place}/{member.name}", f"is a {member.kind}: only what lies in the tar "
                                        "itself is read"))
        elif member.name.startswith("/") or ".." in member.name.split("/"):
            self.skipped.append(Skipped(f"{place}/{member.name}", "has a name that leads out of the tar"))
        else:
            return member.kind == "file" and not member.name.rpartition("/")[2].startswith((".", "__"))
        return False

    def _take(self, tar: _Tar, member: Member, opened: BinaryIO, place: str) -> None:
        """One file: a sample, a label beside one, or neither."""
        key, end = _key(member.name)
        if _last(member.name) in self.suffixes:
            if member.name in tar.media:
                self._again(member, place)
            else:
                tar.media[member.name] = (member.offset, member.size)
        elif end not in BESIDE:
            self.others[_last(member.name) or "(no ending)"] += 1
        elif key in tar.beside[end]:
            self._again(member, place)
        elif member.size > MOST_LABEL:
            tar.beside[end][key] = None
            tar.wrong[key] = f"has a label of {member.size:,} bytes, more than the limit of {MOST_LABEL:,}"
        else:
            opened.seek(member.offset)
            try:
                tar.beside[end][key] = getattr(self, f"_{end}")(opened.read(member.size))
            except ValueError as error:
                tar.beside[end][key] = None if end != "json" else (None, "", "")
                tar.wrong[key] = f"has a .{end} that cannot be read: {error}"

    def _again(self, member: Member, place: str) -> None:
        self.skipped.append(Skipped(f"{place}/{member.name}", "occurs again in the tar; the first is taken"))

    def _shared(self, text: str) -> str:
        return self.known.setdefault(text, text)

    def _cls(self, data: bytes) -> RawLabel:
        return self._shared(_text(data)) or None

    def _txt(self, data: bytes) -> RawLabel:
        if self.classes is None:
            return None
        text = _text(data)
        self.classes.add(text)
        if len(text) > LONGEST_CLASS or "\n" in text or len(self.classes) > MOST_CLASSES:
            self.classes = None
            return None
        return self._shared(text) or None

    def _json(self, data: bytes) -> tuple[RawLabel, str, str]:
        try:
            row = json.loads(_text(data))
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not isinstance(row, dict):
            raise ValueError("it holds no object")
        value = next((row[name] for name in ("label", "labels", "cls", "class") if row.get(name) is not None), None)
        group = next((row[name] for name in ("group", "speaker") if row.get(name) is not None), "")
        part = row.get("split") or ""
        label = [self._label(v) for v in value] if isinstance(value, list) else self._label(value)
        return label, self._shared(_whole(group)), self._shared(_whole(part))  # type: ignore[return-value]

    def _label(self, value: Any) -> str | int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or isinstance(value, int):
            return None if value is None else int(value)
        if isinstance(value, str):
            return self._shared(_whole(value).strip()) or None
        raise ValueError(f"the label {str(value)[:80]} is no class")

    def _grouped(self, tar: _Tar, place: str) -> dict[str, str]:
        """Key of a sample -> name of its file: one with nothing but an ending after the key, else the first."""
        chosen: dict[str, str] = {}
        for name in tar.media:
            key, end = _key(name)
            self.further += key in chosen
            if key not in chosen or "." not in end and "." in _key(chosen[key])[1]:
                chosen[key] = name
        for key in dict.fromkeys(key for column in tar.beside.values() for key in column):
            if key not in chosen:
                ends = ", ".join(f".{end}" for end, column in tar.beside.items() if key in column)
                self.skipped.append(Skipped(f"{place}/{key}", f"has no {one_of(self.samples)}, only {ends}"))
        return chosen

    def listing(self, files: Sequence[Path], source: str, stamp: str) -> Listing:
        """All samples together. Raises DataError where there is none."""
        if not self.names:
            first = f"; {self.skipped[0].id} {self.skipped[0].reason}" if self.skipped else ""
            raise DataError(f"The {'tar holds' if len(files) == 1 else f'{len(files):,} tars hold'} no "
                            f"{one_of(self.samples)}{first}.", where=source,
                            fix=f"Put {self.samples} in it, with their labels beside them as .cls or .json.")
        notes = self._notes(len(files))
        labels, split = self._classes(notes)
        ids = [f"{self.places[shard]}/{show((name,))}" for shard, name in zip(self.shard, self.names, strict=True)]
        return Listing(source, ids, _InTars(files, self.shard, self.offset, self.length), stamp, labels=labels,
                       groups=self.groups if all(self.groups) else None, split=split, skipped=self.skipped,
                       notes=notes, modality=self.modality)

    def _notes(self, count: int) -> list[str]:
        how = "a sample is a member (rule: none has a .cls, .json or .txt beside it)" if self.plain == count else \
            "a sample is what shares a name up to its first dot (rule: there are .cls, .json or .txt members)"
        notes = [f"tars: {count:,} with {len(self.names):,} {self.samples}, read in place; {how}"]
        if self.further:
            notes.append(f"members: {self.further:,} further {self.samples} of the same names are not used (rule: the "
                         "first whose name has one dot, else the first)")
        if self.others:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.others.most_common(4))
            notes.append(f"ignored: {sum(self.others.values()):,} members that are neither {self.samples} nor their "
                         f"labels by their ending ({kinds})")
        if self.unclosed:
            notes.append(f"tars: {self.unclosed:,} have no closing mark; their last members may have been cut off")
        return notes

    def _classes(self, notes: list[str]) -> tuple[list[RawLabel] | None, list[str] | None]:
        """Labels and splits: from the members beside, else from short texts that repeat, else from folders."""
        split = self.split if any(self.split) else None
        if any(label is not None for label in self.labels):
            return self.labels, split
        told = {text for text in self.texts if text is not None} if self.classes is not None else set()
        if told and 2 * len(told) <= len(self.texts):
            notes.append("classes: the texts of the .txt members (rule: there is no .cls and no label in .json, and at "
                         "most half of the texts differ)")
            return self.texts, split
        if told or self.classes is None:
            notes.append("texts: the .txt members are captions and not read (rule: they are long, or most differ)")
        splits, labels, rules = by_place([tuple(name.split("/")) for name in self.names], self.samples)
        notes += rules
        return labels, split or splits


class _InTars:
    """Bytes of a sample by number."""

    def __init__(self, files: Sequence[Path], shard: Sequence[int], offset: Sequence[int],
                 length: Sequence[int]) -> None:
        self.files, self.shard, self.offset, self.length = list(files), shard, offset, length

    def __call__(self, row: int) -> bytes:
        path = self.files[self.shard[row]]
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                return os.pread(handle, self.length[row], self.offset[row])
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(f"The tar can no longer be read: {error.strerror or error}.", where=str(path),
                            fix="Leave the tars in their place while they are read.") from error


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error


def _whole(value: Any) -> str:
    """Text that any file can hold: halves of surrogate pairs replaced."""
    return str(value).encode("utf-8", "replace").decode("utf-8")
