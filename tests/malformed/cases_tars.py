"""Tar shards: damage, hostile members, and every way labels beside samples go wrong."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.malformed.kit import Case, Loads, cases, one, picture, pipe, put, refused, skipped

A, B, C = picture(1), picture(2), picture(3)
LABELLED = [("a.png", A), ("a.cls", b"x"), ("b.png", B), ("b.cls", b"y")]


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files and of entries that are no files."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=form) as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
                continue
            entry = tarfile.TarInfo(member[0])
            entry.size = len(member[1])
            out.addfile(entry, io.BytesIO(member[1]))
    return memory.getvalue()


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def shard(*members: Any, **options: Any) -> Callable[[Path], Path]:
    return one("x.tar", tar(*members, **options))


def changed(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new):]


def header(name: bytes, size: bytes, kind: bytes = b"0", data: bytes = b"") -> bytes:
    """A member whose header says what it likes, with a right sum."""
    head = bytearray(512)
    head[:len(name)], head[124:124 + len(size)], head[156:157] = name, size, kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + bytes(-len(data) % 512)


def linked(folder: Path) -> Path:
    put(folder, "secret.png", C)
    return shard(("a.png", A), entry("b.png", tarfile.SYMTYPE, str(folder / "secret.png")),
                 entry("c.png", tarfile.LNKTYPE, "a.png"))(folder)


def folder_of(**parts: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, data in parts.items():
            put(folder / "d", f"{name}.tar", data)
        return folder / "d"

    return make


def piped(folder: Path) -> Path:
    made = folder_of(a=tar(("a.png", A)))(folder)
    pipe(made, "b.tar")
    return made


def gap(folder: Path) -> str:
    for number in (0, 2):
        put(folder, f"s-{number}.tar", tar(("a.png", A)))
    return f"{folder}/s-{{0..2}}.tar"


TARS = [
    Case("as it should be", shard(*LABELLED), Loads(2, (3, 8, 8), lambda d: d.class_names == ["x", "y"])),
    Case("0 bytes", one("x.tar", b""), refused("empty")),
    Case("noise", one("x.tar", bytes(range(256)) * 8), refused("no tar")),
    Case("zeros alone", one("x.tar", bytes(10_240)), refused("no image")),
    Case("no image", shard(("a.txt", b"x")), refused("no image")),
    Case("compressed", one("x.tar.gz", gzip.compress(tar(*LABELLED))), refused("compressed (gzip)")),
    Case("compressed under the plain name", one("x.tar", gzip.compress(tar(*LABELLED))), refused("compressed (gzip)")),
    Case("HTML under that name", one("x.tar", b"<!DOCTYPE html>" + b" " * 600), refused("no tar")),
    Case("cut within a member", one("x.tar", tar(*LABELLED)[:512 + len(A) // 2]),
         refused("in the middle of 'a.png'", "after 0")),
    Case("cut within the second", one("x.tar", tar(("a.png", A), ("b.png", B))[:1024 + 512 + 60]),
         refused("in the middle", "after 1 whole")),
    Case("cut within a header", one("x.tar", tar(("a.png", A), ("b.png", B))[:1024 + 100]),
         refused("in the middle of a header")),
    Case("cut between members", one("x.tar", tar(("a.png", A), ("b.png", B))[:1024]), Loads(1, note="no closing mark")),
    Case("a header damaged in the middle", one("x.tar", changed(tar(("a.png", A), ("b.png", B)), 1024 + 3, b"\xff")),
         refused("damaged at byte 1,024", "after 1 whole")),
    Case("a size that is no number", one("x.tar", header(b"a.png", b"zzzz", data=A)), refused("no tar")),
    Case("a size below 0", one("x.tar", header(b"a.png", b"-17", data=A)), refused("no tar")),
    Case("a size of 2**95", one("x.tar", header(b"a.png", b"\xff" * 12, data=A)), refused("no tar")),
    Case("a size of 8 GB", one("x.tar", header(b"a.png", b"77777777777", data=A)), refused("in the middle")),
    Case("a long name of 8 GB", one("x.tar", header(b"././@LongLink", b"77777777777", b"L")), refused("a header of")),
    Case("a long name and no member", one("x.tar", header(b"x", b"5", b"L", b"a.png")), refused("last header")),
    Case("a pax record of no length",
         one("x.tar", header(b"x", b"11", b"x", b"0 path=abc\n")), refused("extended header")),
    Case("a pax size that is no number",
         one("x.tar", header(b"x", b"12", b"x", b"11 size=-5\n")), refused("header")),
    Case("a name above the folder", shard(("a.png", A), ("../b.png", B)), skipped(1, **{"../b": "leads out"})),
    Case("an absolute name", shard(("a.png", A), ("/etc/b.png", B)), skipped(1, **{"/etc/b": "leads out"})),
    Case("links to files outside and within", linked, skipped(1, b="is a link", c="is a link")),
    Case("a device and a pipe", shard(("a.png", A), entry("b.png", tarfile.CHRTYPE), entry("c.png", tarfile.FIFOTYPE)),
         skipped(1, b="is a device", c="is a pipe")),
    Case("a sparse file", one("x.tar", tar(("a.png", A))[:1024] + header(b"b.png", b"0", b"S")),
         skipped(1, b="sparse")),
    Case("folders and hidden names", shard(entry("d", tarfile.DIRTYPE), ("d/a.png", A), ("d/.b.png", B),
                                           ("__meta__/x", b""), ("__b.png", B)), Loads(1)),
    Case("a pickle beside", shard(("a.png", A), ("a.cls", b"x"), ("a.pyd", b"cos\nsystem\n(S'touch executed'\ntR.")),
         Loads(1, note=".pyd")),
    Case("a damaged image", shard(("a.png", A), ("b.png", B[:60])), skipped(1, b="decoded")),
    Case("an image of 0 bytes", shard(("a.png", A), ("b.png", b"")), skipped(1, b="empty")),
    Case("the same name twice", shard(("a.png", A), ("a.png", B), ("b.png", C)), skipped(2, a="occurs again")),
    Case("a label twice", shard(*LABELLED, ("a.cls", b"z")), skipped(2, **{"a.cls": "occurs again"})),
    Case("the same names in two tars", folder_of(s1=tar(("a.png", A)), s2=tar(("a.png", B))),
         Loads(2, check=lambda d: d.ids == ["s1.tar/a.png", "s2.tar/a.png"])),
    Case("a label for some", shard(("a.png", A), ("a.cls", b"x"), ("b.png", B)), refused("no label")),
    Case("labels in one tar alone", folder_of(s1=tar(*LABELLED), s2=tar(("a.png", A))), refused("no label")),
    Case("an empty label for some", shard(("a.png", A), ("a.cls", b"x"), ("b.png", B), ("b.cls", b" ")),
         refused("no label")),
    Case("a label without an image", shard(*LABELLED, ("c.cls", b"z")), skipped(2, c="has no image, only .cls")),
    Case("a label in Latin-1", shard(*LABELLED, ("c.png", C), ("c.cls", b"Gr\xfcn")), skipped(2, c="not UTF-8")),
    Case("a label of 2 MB", shard(*LABELLED, ("c.png", C), ("c.cls", b"z" * 2_000_000)), skipped(2, c="2,000,000")),
    Case("broken JSON", shard(*LABELLED, ("c.png", C), ("c.json", b'{"label": ')), skipped(2, c=".json that cannot")),
    Case("JSON that is a list", shard(*LABELLED, ("c.png", C), ("c.json", b"[1]")), skipped(2, c="no object")),
    Case("JSON without end", shard(*LABELLED, ("c.png", C), ("c.json", b"[" * 100_000)), skipped(2, c="deep")),
    Case("a label that is an object", shard(*LABELLED, ("c.png", C), ("c.json", b'{"label": {"x": 1}}')),
         skipped(2, c="no class")),
    Case("a label that is half a letter", shard(("a.png", A), ("a.json", b'{"label": "\\ud800"}')), Loads(1)),
    Case("a name that is no UTF-8", one("x.tar", header(b"\xff\xfe.png", b"%o" % len(A), data=A)), Loads(1)),
    Case("a folder with a damaged tar", folder_of(s1=tar(("a.png", A)), s2=tar(("b.png", B))[:700]), refused("s2.tar")),
    Case("a folder with a pipe", piped, skipped(1, b="not a regular file")),
    Case("a shard of a pattern that is not there", gap, refused("1 of 3 shards", "s-1.tar")),
    Case("a pattern of a million million", lambda f: f"{f}/{{0..999999999999}}.tar", refused("more than 100,000")),
    Case("a file called tar that is a folder", lambda f: put(f, "x.tar/a.png", A).parent, Loads(1)),
]

CASES = cases("tar", *TARS)
