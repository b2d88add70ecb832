"""Where the members of a tar lie, read from its headers alone: nothing is unpacked, and no name is ever a path.

Formats: POSIX ustar and pax (IEEE Std 1003.1), GNU long names and sizes, and the tars before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from osteon.core.errors import DataError

BLOCK = 512
#: Zeros after the closing mark that are looked through for a tar appended to this one.
PADDING = 64 * 1024
#: Bytes of the longest extended header that is read.
LONGEST = 1024 * 1024
_ZERO = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link", b"3": "device",
          b"4": "device", b"6": "pipe", b"S": "sparse file"}


class Member(NamedTuple):
    """One member: its name, what it is (``"file"``, ``"link"``...), and where its bytes lie.

    The last one of a tar without a closing mark, which may have been cut off, is ``"unclosed"`` and no member.
    """

    name: str
    kind: str
    offset: int
    size: int


class _Damaged(Exception):
    """What is wrong with a tar from here on."""


class _NoTar(_Damaged):
    """Why a file is no tar that can be read."""


def read_members(path: Path) -> Iterator[tuple[Member, BinaryIO]]:
    """Every member of a tar in its order, with the open file to read it from.

    Raises:
        DataError: no tar, a compressed one, or one that is damaged or cut off, saying after how many members.
    """
    count, where = 0, str(path)
    try:
        with path.open("rb", buffering=8192) as file:
            size = file.seek(0, 2)
            for member in _scan(file, size):
                yield member, file
                count += member.kind != "unclosed"
    except _NoTar as error:
        raise DataError(f"The file {error}.", where=where, fix="Write it with tar, without compression.") from error
    except _Damaged as error:
        raise DataError(f"The tar {error}, after {count:,} whole members; how much is lost is unknown.", where=where,
                        fix="Fetch or write it again, or leave it out.") from error
    except OSError as error:
        raise DataError(f"The tar cannot be read: {error.strerror or error}.", where=where,
                        fix="Check the disk and the permissions.") from error


def _scan(file: BinaryIO, size: int) -> Iterator[Member]:
    if size == 0:
        raise _NoTar("is empty (0 bytes)")
    place, name, extended = 0, "", dict[str, str]()
    while place < size:
        file.seek(place)
        head = file.read(BLOCK)
        if not head.strip(b"\0"):
            follows = _appended(file)
            if follows is None:
                return
            place = follows
            continue
        length = _checked(head, place)
        kind, start = head[156:157], place + BLOCK
        if kind in b"xgLKX":
            more = _read(file, length, size - start)
            place = start + _padded(length)
            if kind == b"L":
                name = _text(more)
            elif kind in b"xX":
                extended = _records(more)
            continue
        name, length = extended.get("path", name) or _name(head), _length(extended.get("size"), length)
        what = "sparse file" if any(key.startswith("GNU.sparse") for key in extended) else _KINDS.get(kind, "thing")
        if what == "file" and name.endswith("/"):  # before there was a letter for folders
            what = "folder"
        if what not in ("file", "sparse file", "thing"):
            length = 0
        if start + length > size:
            raise _Damaged(f"ends in the middle of '{name[:100]}'")
        yield Member(name, what, start, length)
        place, name, extended = start + _padded(length), "", {}
    if name or extended:
        raise _Damaged("ends before the member its last header speaks of")
    yield Member("", "unclosed", size, 0)


def _checked(head: bytes, place: int) -> int:
    """Bytes a header says its member has."""
    if len(head) < BLOCK:
        raise _Damaged("ends in the middle of a header")
    given = head[148:156]
    try:
        told = int(given.partition(b"\0")[0].strip() or b"-1", 8)
        total = sum(head.translate(None, b"\0")) - sum(given) + 256  # most bytes are zero: cheaper without them
        # Some old programs summed bytes with a sign.
        if told != total and told != total - 256 * sum(byte > 127 for byte in head[:148] + head[156:]):
            raise ValueError
        return _number(head[124:136])
    except ValueError:
        if place:
            raise _Damaged(f"is damaged at byte {place:,}") from None
        kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
        if kind is not None:
            raise _NoTar(f"is compressed ({kind}): samples are read at any place, so unpack it to a plain tar "
                           "first") from None
        raise _NoTar("is no tar") from None


def _number(field: bytes) -> int:
    """Octal digits, or where the first bit is set a number to the base 256 (GNU). Raises ValueError."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >= 2**63:  # also every negative one
            raise ValueError
        return value
    value = int(field.partition(b"\0")[0].strip() or b"0", 8)
    if value < 0:
        raise ValueError
    return value


def _length(text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise _Damaged("has a header with a size that is no number")
    return int(text)


def _name(head: bytes) -> str:
    name = _text(head[:100])
    prefix = _text(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def _read(file: BinaryIO, length: int, most: int) -> bytes:
    if length > LONGEST:
        raise _Damaged(f"has a header of {length:,} bytes")
    if length > most:
        raise _Damaged("ends in the middle of a header")
    return file.read(length)


def _records(data: bytes) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE`` of an extended header."""
    out: dict[str, str] = {}
    while data and data[0]:
        digits, blank, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, sign, value = data[len(digits) + 1:length - 1].partition(b"=")
        if not blank or not sign or length > len(data) or data[length - 1:length] != b"\n":
            raise _Damaged("has an extended header that is damaged")
        out[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[length:]
    return out


def _appended(file: BinaryIO) -> int | None:
    """After the closing zeros: where another tar begins that was appended, or None."""
    for _ in range(PADDING // BLOCK):
        place = file.tell()
        head = file.read(BLOCK)
        if len(head) < BLOCK:
            return None
        if head != _ZERO:
            try:
                _checked(head, place)
            except _Damaged:  # whatever follows is no tar
                return None
            return place
    return None


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
