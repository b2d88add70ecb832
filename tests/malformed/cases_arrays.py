"""Arrays: ``.npy`` and ``.npz`` with lying headers, pickles, archives that are bombs or try to escape."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.malformed.kit import Case, Loads, cases, npy, npy_claim, npz, one, put, refused

IMAGES = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
LABELS = np.array([0, 1, 0, 1])


class Danger:
    """Unpickling it writes a file: what must never happen."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return memory.getvalue()


def bomb(gigabytes: int) -> bytes:
    """An archive of a few megabytes whose one member is honest about being so many gigabytes of zeros."""
    size = gigabytes * 2**30
    head = npy_claim(f"({size // 64}, 8, 8)", data=b"")
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bytes(2**20)
    start = engine.compress(head) + engine.flush(zlib.Z_FULL_FLUSH)
    piece = engine.compress(block) + engine.flush(zlib.Z_FULL_FLUSH)
    packed = start + piece * (size // 2**20) + engine.flush()
    return _member("image.npy", packed, len(head) + size, zipfile.ZIP_DEFLATED)


def _member(name: str, packed: bytes, size: int, method: int) -> bytes:
    """A zip file of one member, written by hand, in the 64-bit form."""
    label = name.encode()
    sizes = struct.pack("<HHQQ", 1, 16, size, len(packed))
    common = struct.pack("<HHHHHIIIHH", 45, 0, method, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(label), len(sizes))
    local = b"PK\3\4" + common + label + sizes + packed
    central = b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + label + sizes
    end64 = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(central), len(local))
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(local) + len(central), 1)
    return (
        local + central + end64 + locator + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), 0xFFFFFFFF, 0)
    )


def no_escape(folder: Path) -> Any:
    put(
        folder / "in",
        "x.npz",
        archive({"../../escaped.npy": npy(IMAGES), f"{folder}/escaped.npy": npy(IMAGES), "image.npy": npy(IMAGES)}),
    )
    return folder / "in" / "x.npz"


def stayed(made: Any) -> None:
    assert not list(Path().rglob("escaped*")) and not list(Path("..").glob("escaped*"))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


NPY = [
    Case("grey", one("x.npy", npy(IMAGES)), Loads(4, (1, 8, 8), lambda d: (d.images[:, 0] == IMAGES).all())),
    Case(
        "big-endian 16 bits",
        one("x.npy", npy(IMAGES.astype(">u2") * 200)),
        Loads(4, (1, 8, 8), lambda d: (d.images[:, 0] == IMAGES.astype(np.uint16) * 200).all()),
    ),
    Case(
        "Fortran order",
        one("x.npy", npy(np.asfortranarray(IMAGES))),
        Loads(4, (1, 8, 8), lambda d: (d.images[:, 0] == IMAGES).all()),
    ),
    Case("float16", one("x.npy", npy(IMAGES.astype(np.float16) / 256)), Loads(4, (1, 8, 8))),
    Case("one image", one("x.npy", npy(IMAGES[:1])), Loads(1, note="only one")),
    Case("no image", one("x.npy", npy(IMAGES[:0])), refused("holds no image")),
    Case("0 rows of pixels", one("x.npy", npy(np.zeros((4, 0, 8), np.uint8))), refused()),
    Case("0 channels", one("x.npy", npy(np.zeros((4, 8, 8, 0), np.uint8))), refused()),
    Case("a number", one("x.npy", npy(np.float32(3))), refused("shape ()")),
    Case("a row", one("x.npy", npy(np.arange(9))), refused("shape (9,)")),
    Case("5 sides", one("x.npy", npy(np.zeros((1, 1, 1, 1, 1), np.uint8))), refused("shape")),
    Case("bool", one("x.npy", npy(IMAGES > 9)), refused("type bool")),
    Case("int64", one("x.npy", npy(IMAGES.astype(np.int64))), refused("int64")),
    Case("complex", one("x.npy", npy(IMAGES.astype(np.complex64))), refused("complex64")),
    Case("text", one("x.npy", npy(IMAGES.astype("U4"))), refused()),
    Case("dates", one("x.npy", npy(IMAGES.astype("M8[s]"))), refused()),
    Case("a structure", one("x.npy", npy(np.zeros((4, 8, 8), [("a", "u1"), ("b", "f4")]))), refused()),
    Case(
        "NaN",
        one("x.npy", npy(np.where(IMAGES == 70, np.nan, 0).astype(np.float32))),
        Loads(None, None, lambda d: [s.reason for s in d.skipped] == ["contains NaN or infinity"]),
    ),
    Case("only NaN", one("x.npy", npy(np.full((3, 8, 8), np.nan, np.float32))), refused("NaN")),
    Case("infinity", one("x.npy", npy(np.full((3, 8, 8), np.inf, np.float32))), refused("NaN or infinity")),
    Case("float64 beyond float32", one("x.npy", npy(np.full((3, 8, 8), 1e300))), refused("NaN or infinity")),
    Case("7 channels", one("x.npy", npy(np.zeros((4, 9, 9, 7), np.uint8))), Loads(4, (7, 9, 9))),
    Case("0 bytes", one("x.npy", b""), refused("cannot be read")),
    Case("1 byte", one("x.npy", b"\x93"), refused("cannot be read")),
    Case("the magic alone", one("x.npy", b"\x93NUMPY\1\0"), refused("cannot be read")),
    Case("text inside", one("x.npy", b"not an array at all, only words\n" * 9), refused()),
    Case("cut short", one("x.npy", npy(IMAGES)[:-50]), refused("cannot be read")),
    Case("a version of the future", one("x.npy", npy_claim("(4, 8, 8)", version=b"\x09\0")), refused("cannot be read")),
    Case(
        "a header of 4 gigabytes", one("x.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 99), refused("cannot be read")
    ),
    Case(
        "a header that is a program",
        one("x.npy", npy_claim("__import__('os').system('touch executed')")),
        refused("cannot be read"),
    ),
    Case("a header of brackets", one("x.npy", npy_claim("(" * 5000)), refused()),
    Case("a header of null bytes", one("x.npy", b"\x93NUMPY\1\0\x80\0" + bytes(128)), refused()),
    Case("a claim of a petabyte", one("x.npy", npy_claim("(1000000000000, 32, 32)")), refused("claims")),
    Case(
        "a claim beyond 64 bits", one("x.npy", npy_claim("(99999999999, 99999999999, 99999999999)")), refused("claims")
    ),
    Case("a negative side", one("x.npy", npy_claim("(-1, 8, 8)")), refused()),
    Case("a side of True", one("x.npy", npy_claim("(True, 8, 8)")), refused()),
    Case("a type of no bytes", one("x.npy", npy_claim("(4, 8, 8)", "'|V0'")), refused()),
    Case("a shape that is a word", one("x.npy", npy_claim("'abc'")), refused()),
    Case("objects", one("x.npy", npy(np.array([Danger()] * 4, object), allow_pickle=True)), refused("Python objects")),
    Case("a pickle under that name", one("x.npy", pickle.dumps(Danger())), refused("Python objects")),
    Case("an archive under that name", one("x.npy", npz(image=IMAGES)), refused(".npz")),
]

NPZ = [
    Case(
        "labels and names as bytes",
        one("x.npz", npz(image=IMAGES, label=np.array([b"cat", "h\u00fcndin".encode()] * 2))),
        Loads(4, check=lambda d: d.class_names == ["cat", "h\u00fcndin"]),
    ),
    Case(
        "names of classes as bytes",
        one("x.npz", npz(image=IMAGES, label=np.arange(4) % 2, class_names=np.array([b"cat", b"dog"]))),
        Loads(4, check=lambda d: d.class_names == ["cat", "dog"]),
    ),
    Case(
        "labels of bytes that are no text",
        one("x.npz", npz(image=IMAGES, label=np.array([b"\xff", b"a"] * 2))),
        refused("'label'", "no text"),
    ),
    Case(
        "labels of code points that no text has",
        one("x.npz", npz(image=IMAGES, label=np.frombuffer((b"a\0\0\0" + b"\xff" * 4) * 2, dtype="<U1"))),
        refused("'label'", "no text"),
    ),
    Case(
        "labels of code points beyond Unicode",
        one("x.npz", npz(image=IMAGES, label=np.array([0x110000, 97] * 4, np.uint32).view("<U2"))),
        refused("'label'", "no text"),
    ),
    Case(
        "images and labels",
        one("x.npz", npz(image=IMAGES, label=LABELS)),
        Loads(4, (1, 8, 8), lambda d: d.labels.tolist() == [0, 1, 0, 1]),
    ),
    Case("one array under that name", one("x.npz", npy(IMAGES)), refused(".npy")),
    Case("0 bytes", one("x.npz", b""), refused("cannot be read")),
    Case("cut short", one("x.npz", npz(image=IMAGES)[:200]), refused("cannot be read")),
    Case("cut at its end", one("x.npz", npz(image=IMAGES)[:-30]), refused("cannot be read")),
    Case("a flipped bit in the data", one("x.npz", flipped(npz(image=IMAGES), 250)), refused("cannot be read")),
    Case("a flipped bit in compressed data", one("x.npz", flipped(npz(True, image=IMAGES), 90)), refused()),
    Case("no member", one("x.npz", archive({})), refused("no array 'image'")),
    Case(
        "members that are no arrays", one("x.npz", archive({"readme.txt": b"hello", "image": b"no array"})), refused()
    ),
    Case("an image member of 0 bytes", one("x.npz", archive({"image.npy": b""})), refused()),
    Case("an image member that is text", one("x.npz", archive({"image.npy": b"words " * 40})), refused()),
    Case("the image member twice", one("x.npz", b"PK\5\6" + bytes(18)), refused("no array 'image'")),
    Case("another name for the images", one("x.npz", npz(images=IMAGES)), refused("it has: images")),
    Case("more labels than images", one("x.npz", npz(image=IMAGES, label=np.arange(9))), refused("4 images but 9")),
    Case("a label that is a number", one("x.npz", npz(image=IMAGES, label=np.array(3))), refused("label")),
    Case(
        "labels that are fractions", one("x.npz", npz(image=IMAGES, label=np.array([0.5, 1, 2, 3]))), refused("labels")
    ),
    Case(
        "labels without a name",
        one("x.npz", npz(image=IMAGES, label=np.array([0, 1, 2, 9]), class_names=np.array(["a", "b", "c"]))),
        refused("has no name"),
    ),
    Case("labels of -1 for some", one("x.npz", npz(image=IMAGES, label=np.array([0, 1, -1, 1]))), refused("no label")),
    Case(
        "labels of -1 for all",
        one("x.npz", npz(image=IMAGES, label=np.full(4, -1))),
        Loads(4, check=lambda d: d.labels is None),
    ),
    Case(
        "labels of 2^64 - 1",
        one("x.npz", npz(image=IMAGES, label=np.array([0, 1, 0, 2**64 - 1], np.uint64))),
        Loads(4, check=lambda d: d.class_names == ["0", "1", str(2**64 - 1)]),
    ),
    Case("one label for all", one("x.npz", npz(image=IMAGES, label=np.full(4, 7))), Loads(4, note="one class")),
    Case(
        "several labels an image",
        one("x.npz", npz(image=IMAGES, label=np.eye(4, dtype=np.uint8)[:, :3])),
        Loads(4, check=lambda d: d.labels.shape == (4, 3)),
    ),
    Case(
        "labels with a newline",
        one("x.npz", npz(image=IMAGES, label=np.array(["a\nb", "c"] * 2))),
        Loads(4, check=lambda d: d.class_names == ["a\nb", "c"]),
    ),
    Case(
        "class names that are a number",
        one("x.npz", npz(image=IMAGES, label=LABELS, class_names=np.array("a"))),
        refused("class_names"),
    ),
    Case("a split that is a number", one("x.npz", npz(image=IMAGES, split=np.array("train"))), refused("split")),
    Case(
        "object labels",
        one("x.npz", npz(image=IMAGES, label=np.array([Danger()] * 4, object))),
        refused("Python objects"),
    ),
    Case("object images", one("x.npz", npz(image=np.array([Danger()] * 4, object))), refused("Python objects")),
    Case(
        "an image member that is a pickle",
        one("x.npz", archive({"image.npy": pickle.dumps(Danger())})),
        refused("no array"),
    ),
    Case(
        "a header that claims a petabyte",
        one("x.npz", archive({"image.npy": npy_claim("(1000000000000, 32, 32)")})),
        refused("claims"),
    ),
    Case(
        "labels that claim a terabyte",
        one("x.npz", archive({"image.npy": npy(IMAGES), "label.npy": npy_claim("(1000000000000,)")})),
        refused("claims"),
    ),
    Case(
        "edges that claim a terabyte",
        one("x.npz", archive({"edges.npy": npy_claim("(2, 1000000000000)", "'<i8'")})),
        refused("claims"),
    ),
    Case(
        "points that claim a terabyte",
        one("x.npz", archive({"points.npy": npy_claim("(10, 1000000000, 3)", "'<f8'")})),
        refused("claims"),
    ),
    Case(
        "volumes that claim a terabyte",
        one("x.npz", archive({"volume.npy": npy_claim("(10, 9999, 9999, 9999)")})),
        refused("claims"),
    ),
    Case(
        "clips that claim a terabyte",
        one("x.npz", archive({"video.npy": npy_claim("(10, 9999, 9999, 9999)")})),
        refused("claims"),
    ),
    Case(
        "series that claim a terabyte",
        one("x.npz", archive({"series.npy": npy_claim("(10, 9999, 99999999)")})),
        refused("claims"),
    ),
    Case("a bomb: 8 GB of zeros in 8 MB", lambda f: put(f, "x.npz", bomb(8)), refused("memory")),
    Case("members that try to escape", no_escape, Loads(4, check=stayed)),
    Case(
        "an encrypted member",
        one(
            "x.npz",
            # the flag in the header of the member and in the directory, whatever version of the format they name
            re.sub(b"(PK\3\4..|PK\1\2....)\0\0", b"\\1\1\0", npz(image=IMAGES), flags=re.DOTALL),
        ),
        refused(),
    ),
    Case("an unknown compression", one("x.npz", _member("image.npy", npy(IMAGES), len(npy(IMAGES)), 99)), refused()),
    Case("a comment of 64 KB", lambda f: _commented(put(f, "x.npz", npz(image=IMAGES))), Loads(4)),
    Case("bytes before the archive", one("x.npz", b"#!/bin/sh\n" + npz(image=IMAGES)), refused()),
]


def _commented(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"x" * 65_535
    return path


SOLID = np.arange(2 * 4 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 4)
ASKED = [
    Case(f"{modality}, {what}", one(f"x.{kind}", data), rule, options={"modality": modality})
    for modality in ("volume", "video", "points", "series", "graph", "table", "text", "sound", "several")
    for what, kind, data, rule in (
        ("0 bytes of .npy", "npy", b"", refused()),
        ("objects in .npy", "npy", npy(np.array([Danger()], object), allow_pickle=True), refused()),
        ("damaged .npz", "npz", npz(image=IMAGES)[:99], refused()),
        ("an .npz without it", "npz", npz(other=IMAGES), refused()),
    )
]

CASES = cases("npy", *NPY) + cases("npz", *NPZ) + cases("asked", *ASKED)
