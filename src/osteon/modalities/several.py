"""Several modalities of one thing: an image and its sound, a text and its table; any of them may be missing.

A sample is packed into one array, see :mod:`osteon.parts.members`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from osteon.modalities import find
from osteon.modalities._base import Control
from osteon.parts.members import Members, plain_spec
from osteon.parts.types import DataSpec

#: What several samples are called.
SAMPLES = "sets"
#: How a set becomes an array; printed.
RULES = "each member is read as its modality is; what is missing is zeros and marked as missing"


def _first(position: int) -> Control:
    """The first control of the member at a position; zeros where the member is missing."""
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        members = Members.of(spec.traits)
        member = members[position]
        control = next(iter(find(member.name).CONTROLS.values()))
        (there, known), (there_test, asked) = (members.split(part, member) for part in (train, test))
        kind = np.dtype({255.0: "uint8", 65535.0: "uint16"}.get(member.spec.scale, "float32"))
        if not there.any():
            return np.zeros((len(train), 1), np.float32), np.zeros((len(test), 1), np.float32)
        some = asked[there_test] if there_test.any() else known[there][:1]
        x, y = control(known[there].astype(kind), some.astype(kind), member.spec)
        first, second = (np.zeros((len(part), x.shape[1]), np.float32) for part in (train, test))
        first[there] = x
        if there_test.any():
            second[there_test] = y
        return first, second

    return both


class _Controls(Mapping[str, Control]):
    """The members are known only with the data, so controls are named by their place in the manifest."""

    names = ("first member alone", "second member alone", "all members side by side")

    def __getitem__(self, name: str) -> Control:
        if name not in self.names:
            raise KeyError(name)
        return _first(self.names.index(name)) if name != self.names[2] else _together

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _together(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """The first control of every member, each scaled to unit variance by the training part, side by side."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for i in range(len(Members.of(spec.traits))):
        x, y = _first(i)(train, test, spec)
        mean, size = x.mean(0), max(float(np.sqrt(x.var(0).sum())), 1e-6)
        parts[0].append((x - mean) / size)
        parts[1].append((y - mean) / size)
    return np.concatenate(parts[0], 1), np.concatenate(parts[1], 1)


#: Features that cost no training, shown beside every result: each the first control of its member's modality.
CONTROLS: Mapping[str, Control] = _Controls()


#: Members are scaled already.
ALIKE = "all members side by side"


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """The members and what each of their networks needs to know."""
    members = Members.of(spec.traits)
    needed = {m.name: find(m.name).backbone_options(m.spec) for m in members}
    known = {m.name: plain_spec(m.spec) for m in members}
    return {"stem": "several", "stem_options": {"members": known, "needed": needed}}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Pictures of the members side by side, (B, 1, T) -> (B, h, w, 3) uint8; white where one is missing."""
    members, drawn = Members.of(spec.traits), list[np.ndarray]()
    for member in members:
        there, part = members.split(values, member)
        around = None if like is None else members.split(like, member)[1] / member.spec.scale
        shown = find(member.name).picture(part / member.spec.scale, member.spec, around)
        drawn.append(np.where(there[:, None, None, None], shown, 255).astype(np.uint8))
    high = max(64, *(p.shape[1] for p in drawn))
    return np.concatenate([_to_height(p, high) for p in drawn], 2)


def _to_height(pictures: np.ndarray, high: int) -> np.ndarray:
    """Nearest neighbours to one height, at most three times as wide, with a white line behind."""
    rows, columns = pictures.shape[1:3]
    wide = min(3 * high, max(1, round(columns * high / rows)))
    y, x = np.arange(high) * rows // high, np.arange(wide) * columns // wide
    return np.pad(pictures[:, y][:, :, x], ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)


def pack_texts(texts: Sequence[str], spec: DataSpec) -> np.ndarray:
    """Texts as sets that have nothing else, (N, 1, T) float32, by the vocabulary of the data."""
    from osteon.modalities.text import load_tokenizer

    members = Members.of(spec.traits)
    member = members[members.names.index("text")]
    tokenizer, window = load_tokenizer(str(member.spec.traits["tokenizer"])), member.spec.extent[-1]
    out = np.zeros((len(texts), 1, members.width), np.float32)
    for row, text in zip(out, texts, strict=True):
        tokens = tokenizer.encode(text)[:window]
        row[0, members.names.index("text")] = 1
        row[0, member.start:member.start + len(tokens)] = tokens
    return out
