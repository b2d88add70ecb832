"""Reading one cloud of points: PLY (Turk 1994), OFF, rows of numbers, arrays; claims are checked before use.

Everything that is wrong with a file raises :class:`osteon.modalities.Unreadable` with the reason.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteon.modalities._base import Payload, Unreadable

#: Largest file that is read, in bytes, and most points of a cloud.
MAX_BYTES, MAX_POINTS = 2**30, 20_000_000
#: Types of a PLY file by name.
TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
         "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
         "double": "f8", "float64": "f8"}
#: Properties of a point that are kept beside its place, in this order: normals, colours, strength of the echo.
EXTRAS = ("nx", "ny", "nz", "red", "green", "blue", "intensity")


@dataclass
class Cloud:
    """Points as found.

    Args:
        points: (n, 3) float64.
        names: of further values.
        values: (n, F) float64.
        faces: (m, 3) int64, triangles of a mesh; empty of a plain cloud.
    """

    points: np.ndarray
    names: tuple[str, ...] = ()
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    faces: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))


def read_cloud(payload: Payload) -> Cloud:
    """The cloud of a file or an array (n, 3 + F)."""
    cloud = _checked_array(payload) if isinstance(payload, np.ndarray) else _read_file(payload)
    if not len(cloud.points):
        raise Unreadable("holds no point")
    if not (np.isfinite(cloud.points).all() and np.isfinite(cloud.values).all()):
        raise Unreadable("contains NaN or infinity")
    if np.abs(cloud.points).max() > 1e30:
        raise Unreadable("has coordinates beyond 1e30")
    if len(cloud.faces) and not (0 <= cloud.faces.min() and cloud.faces.max() < len(cloud.points)):
        raise Unreadable(f"has a face that names point {cloud.faces.max()} of {len(cloud.points)} (counted from 0)")
    return cloud


def _read_file(payload: bytes | Path) -> Cloud:
    if isinstance(payload, bytes):
        raise Unreadable("has no name to tell its format by")
    path = Path(payload)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise Unreadable("is not a regular file")
        if not status.st_size:
            raise Unreadable("is empty (0 bytes)")
        if status.st_size > MAX_BYTES:
            raise Unreadable(f"has {status.st_size / 2**30:.1f} GiB, more than the limit of {MAX_BYTES / 2**30:.0f}")
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return _checked_array(_read_array(path))
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Unreadable("file not found") from error
    except PermissionError as error:
        raise Unreadable("no permission to read") from error
    except (OSError, ValueError, EOFError) as error:
        raise Unreadable(f"cannot be read: {error}") from error
    return {".ply": read_ply, ".off": read_off}.get(suffix, read_rows)(data)


def _read_array(path: Path) -> Any:
    """An ``.npy``: mapped to hold its claims against its size, then read, as it may be cut short meanwhile."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.memmap):
        return mapped
    order: Any = "C" if mapped.flags.c_contiguous else "F"
    return np.fromfile(path, mapped.dtype, mapped.size, offset=mapped.offset).reshape(mapped.shape, order=order)


def _checked_array(array: np.ndarray) -> Cloud:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "iuf":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise Unreadable(f"is no array of points (n, 3 or more numbers): {what}")
    if len(array) > MAX_POINTS:
        raise Unreadable(f"holds {len(array):,} points, more than the limit of {MAX_POINTS:,}")
    return _columns(np.asarray(array, np.float64))


def _columns(table: np.ndarray, names: Sequence[str] = ()) -> Cloud:
    names = tuple(names) or tuple(f"column {i + 1}" for i in range(3, table.shape[1]))
    return Cloud(np.ascontiguousarray(table[:, :3]), names, np.ascontiguousarray(table[:, 3:]))


def read_rows(data: bytes) -> Cloud:
    """A point a row: numbers apart by spaces, commas or semicolons, after at most one row of names or of a count."""
    lines = [(i, line) for i, line in enumerate(_text(data).splitlines(), 1)
             if line.strip() and not line.lstrip().startswith(("#", "//"))]
    if not lines:
        raise Unreadable("holds no row of numbers")
    first = re.split(r"[\s,;]+", lines[0][1].strip())
    counted = len(first) == 1 and _is_count(first[0]) and len(lines) > 1
    if counted or not all(map(_is_number, filter(None, first))):
        lines = lines[1:]
    if counted and int(first[0]) != len(lines):
        raise Unreadable(f"claims {int(first[0]):,} points and holds {len(lines):,}")
    if not lines:
        raise Unreadable("holds no row of numbers")
    return _columns(_table(lines, None))


def _table(lines: Sequence[tuple[int, str]], least: int | None) -> np.ndarray:
    """Rows of numbers, all of one length, or of the first ``least`` numbers each."""
    rows = [[cell for cell in re.split(r"[\s,;]+", line.strip()) if cell] for _, line in lines]
    wide = least or len(rows[0])
    if wide < 3:
        raise Unreadable(f"has {wide} numbers a row, and a place in space takes 3")
    for (at, _), row in zip(lines, rows, strict=True):
        if len(row) < wide or (least is None and len(row) != wide):
            raise Unreadable(f"has {len(row)} numbers in row {at}, {wide} are needed")
    try:
        return np.array([row[:wide] for row in rows], np.float64).reshape(len(rows), wide)
    except ValueError:
        at, bad = next((at, c) for (at, _), row in zip(lines, rows, strict=True) for c in row[:wide]
                       if not _is_number(c))
        raise Unreadable(f"has '{bad[:20]}' in row {at}, which is no number") from None


def _is_count(cell: str) -> bool:
    """Whether a cell is a whole number without sign, of the ten digits alone and of a length that can be meant."""
    return re.fullmatch(r"[0-9]{1,20}", cell) is not None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is no text of numbers") from None


def read_off(data: bytes) -> Cloud:
    """A mesh in the Object File Format; faces of more than three corners are cut into triangles about the first."""
    lines = [(i, body) for i, line in enumerate(_text(data).splitlines(), 1) if (body := line.split("#")[0].strip())]
    head = re.match(r"(C?OFF)\s*", lines[0][1]) if lines else None
    if head is None:
        raise Unreadable("does not begin with OFF")
    rest = lines[0][1][head.end():]
    lines = ([(lines[0][0], rest)] if rest else []) + lines[1:]  # some files have the counts behind the word
    counts = lines[0][1].split() if lines else []
    if len(counts) < 2 or not all(_is_count(c) for c in counts[:2]):
        raise Unreadable("has no counts of points and faces after OFF")
    points, faces = int(counts[0]), int(counts[1])
    if points + faces > len(lines) - 1:
        raise Unreadable(f"claims {points:,} points and {faces:,} faces and has {len(lines) - 1:,} rows")
    if not points:
        raise Unreadable("holds no point")
    corners = [_corners(at, row) for at, row in lines[1 + points:1 + points + faces]]
    return Cloud(_table(lines[1:1 + points], 3), (), np.empty((points, 0)), _fans(corners))


def _corners(at: int, row: str) -> list[int]:
    cells = row.split()
    count = int(cells[0]) if _is_count(cells[0]) else -1
    if count < 0 or len(cells) < 1 + count or not all(_is_count(c) for c in cells[1:1 + count]):
        raise Unreadable(f"has no list of corners in row {at}")
    return [int(c) for c in cells[1:1 + count]]


def _fans(faces: Sequence[Sequence[int]]) -> np.ndarray:
    """Polygons as triangles about their first corner, (m, 3)."""
    triangles = [(f[0], f[i], f[i + 1]) for f in faces for i in range(1, len(f) - 1)]
    return np.array(triangles, np.int64).reshape(-1, 3)


@dataclass
class _Element:
    """An element of a PLY file: its name, count and properties (name, type, type of its count if it is a list)."""

    name: str
    count: int
    properties: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """No property is a list."""
        return not any(many for _, _, many in self.properties)


def read_ply(data: bytes) -> Cloud:
    """A PLY file, as text or binary of either byte order: places, normals, colours (0 to 1), intensity, triangles."""
    end = re.search(rb"end_header[ \t]*\r?\n", data[:2**16])
    if not data.startswith(b"ply") or end is None:
        raise Unreadable("has no PLY header")
    order, elements = _ply_header(data[:end.start()].decode("latin-1").splitlines())
    if order:
        found = dict(_ply_binary(data, end.end(), order, elements))
    else:
        found = dict(_ply_text(_text(data[end.end():]).splitlines(), elements))
    vertex = next((e for e in elements if e.name == "vertex"), None)
    if vertex is None:
        raise Unreadable("has no element vertex")
    table, kinds = found["vertex"], {name: kind for name, kind, _ in vertex.properties}
    if not {"x", "y", "z"} <= kinds.keys() or not isinstance(table, dict):
        raise Unreadable(f"has points without x, y and z; they have: {', '.join(kinds) or 'nothing'}")
    names = tuple(name for name in EXTRAS if name in kinds)
    values = [table[name] / (255.0 if kinds[name] == "u1" else 65535.0 if kinds[name] == "u2" else 1.0)
              for name in names]
    faces = found.get("face")
    return Cloud(np.stack([table[side] for side in "xyz"], 1), names,
                 np.stack(values, 1) if values else np.empty((vertex.count, 0)),
                 _fans(faces) if isinstance(faces, list) else np.empty((0, 3), np.int64))


def _ply_header(lines: list[str]) -> tuple[str, list[_Element]]:
    """Byte order ("" = text) and elements."""
    order, elements = None, list[_Element]()
    for line in lines[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) >= 2:
            order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}.get(words[1])
        elif words[0] == "element" and len(words) == 3 and _is_count(words[2]):
            elements.append(_Element(words[1], int(words[2])))
        elif words[0] == "property" and elements and len(words) == 3 and words[1] in TYPES:
            elements[-1].properties.append((words[2], TYPES[words[1]], ""))
        elif (words[0] == "property" and elements and len(words) == 5 and words[1] == "list"
              and words[2] in TYPES and words[3] in TYPES):
            elements[-1].properties.append((words[4], TYPES[words[3]], TYPES[words[2]]))
        else:
            raise Unreadable(f"has a PLY header with '{line[:60]}'")
    if order is None:
        raise Unreadable("has a PLY header without a known format")
    return order, elements


Found = dict[str, np.ndarray] | list[list[int]]


def _ply_binary(data: bytes, at: int, order: str, elements: list[_Element]) -> Iterator[tuple[str, Found]]:
    for element in elements:
        if element.plain:
            kind = np.dtype([(f"{i}", order + t) for i, (_, t, _) in enumerate(element.properties)])
            if kind.itemsize * element.count > len(data) - at:
                raise Unreadable(f"claims {element.count:,} of {element.name}, {kind.itemsize * element.count:,} "
                                 f"bytes, and holds {len(data) - at:,}")
            rows = np.frombuffer(data, kind, element.count, at) if kind.itemsize else np.empty(0, kind)
            yield element.name, {name: rows[f"{i}"].astype(np.float64)
                                 for i, (name, _, _) in enumerate(element.properties)}
            at += kind.itemsize * element.count
        else:
            lists, at = _ply_lists(data, at, order, element)
            yield element.name, lists


def _ply_lists(data: bytes, at: int, order: str, element: _Element) -> tuple[list[list[int]], int]:
    """The first list of every row of an element, and where the element ends."""
    least = sum(np.dtype(many or kind).itemsize for _, kind, many in element.properties)
    if element.count * least > len(data) - at:
        raise Unreadable(f"claims {element.count:,} of {element.name} and holds {len(data) - at:,} bytes")
    out = []
    for _ in range(element.count):
        first: list[int] | None = None
        for _, kind, many in element.properties:
            size, count = np.dtype(kind).itemsize, 1
            if many:
                count = _whole(np.frombuffer(data, order + many, 1, at))[0] if at < len(data) else -1
                at += np.dtype(many).itemsize
            if count < 0 or at + size * count > len(data):
                raise Unreadable(f"ends within its list of {element.name}")
            if many and first is None:
                first = _whole(np.frombuffer(data, order + kind, count, at))
            at += size * count
        out.append(first or [])
    return out, at


def _whole(values: np.ndarray) -> list[int]:
    if not np.isfinite(values).all():
        raise Unreadable("has a face of numbers that are not whole")
    return [int(value) for value in values]


def _ply_text(lines: list[str], elements: list[_Element]) -> Iterator[tuple[str, Found]]:
    rows = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    for element in elements:
        if element.count > len(rows):
            raise Unreadable(f"claims {element.count:,} of {element.name} and has {len(rows):,} rows")
        mine, rows = rows[:element.count], rows[element.count:]
        if not element.plain:
            yield element.name, [_corners(at, row) for at, row in mine] if element.properties[0][2] else []
        elif mine and element.properties:
            wide = len(element.properties)
            if element.name != "vertex":
                continue
            table = _table(mine, max(3, wide))
            yield element.name, {name: table[:, i] for i, (name, _, _) in enumerate(element.properties)}
        else:
            yield element.name, {name: np.empty(0) for name, _, _ in element.properties}
