"""Images and folders of images: damage, hostile headers, and everything odd that decodes by a stated rule."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from tests.malformed.kit import (
    Case,
    Loads,
    among,
    cases,
    files,
    one,
    picture,
    pipe,
    put,
    refused,
    skipped,
    socket_file,
)

#: Pillow 12 cannot read the YCbCr TIFF it writes, and gives another reason for a WebP too large to be decoded.
NEW = int(PIL.__version__.split(".")[0]) >= 13

GOOD = {"a.png": picture(1), "b.png": picture(2), "c.png": picture(3)}


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    memory = io.BytesIO()
    image.save(memory, kind, **save)
    return memory.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A PNG that says what it likes about its size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows or b"\0" * 10)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int = 8, count: int = 1) -> bytes:
    """A TIFF of one strip that is not there."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, count),
        (278, 4, 1, height),
        (279, 4, 1, 10),
    ]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0\0\0\0"


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x02\x02\x44\x01\x00\x3b"
    )


def webp(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + b"\0\0\0\0"
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


FORMATS = {
    "png": picture(9),
    "jpg": picture(9, kind="JPEG"),
    "gif": picture(9, kind="GIF"),
    "bmp": picture(9, kind="BMP"),
    "tif": picture(9, kind="TIFF"),
    "webp": picture(9, kind="WEBP"),
    "ppm": picture(9, kind="PPM"),
    "tga": picture(9, kind="TGA"),
    "pcx": picture(9, kind="PCX"),
    "jp2": picture(9, (16, 16), kind="JPEG2000"),
}

#: The same damage in every format: each is skipped, by name, and the others load.
DAMAGED = [
    Case(f"{kind}, {what}", among(GOOD, f"bad.{kind}", damage(data)), skipped(3, bad=reason))
    for kind, data in FORMATS.items()
    for what, damage, reason in (
        ("0 bytes", lambda d: b"", "empty (0 bytes)"),
        ("1 byte", lambda d: d[:1], ""),
        ("cut in the middle", lambda d: d[: len(d) // 2], ""),
        ("wrong magic", lambda d: b"\xff\xfe\xfd\xfc" * 8 + d[32:], "known format"),
        ("text inside", lambda d: b"<html><body>404 not found</body></html>\n", "known format"),
    )
]

CLAIMS = [
    Case(what, among(GOOD, f"bomb.{kind}", data), skipped(3, bomb="claims" if kind != "webp" or NEW else ""))
    for what, kind, data in (
        ("PNG of 4 thousand million pixels", "png", png(65535, 65535)),
        ("PNG of 2^31-1 by 2^31-1", "png", png(2**31 - 1, 2**31 - 1)),
        ("PNG just above the limit", "png", png(13_378, 13_378)),
        ("TIFF of 4 thousand million pixels", "tif", tiff(65535, 65535)),
        ("TIFF of 2^32-1 by 2", "tif", tiff(2**32 - 1, 2)),
        ("BMP of 4 thousand million pixels", "bmp", bmp(65535, 65535)),
        ("GIF of 4 thousand million pixels", "gif", gif(65535, 65535)),
        ("WebP of 268 million pixels", "webp", webp(16384, 16384)),
        ("PGM of 10^18 pixels", "pgm", b"P5 1000000000 1000000000 255\n" + bytes(9)),
    )
]

ODD_CLAIMS = [
    Case(what, among(GOOD, f"odd.{kind}", data), skipped(3, odd=""))
    for what, kind, data in (
        ("PNG of no pixels", "png", png(0, 0)),
        ("PNG with 100 million pixels and 10 bytes of them", "png", png(10_000, 10_000)),
        ("PNG with an impossible depth", "png", png(8, 8, depth=7)),
        ("PNG with a bad checksum", "png", picture(4)[:30] + b"\0\0\0\0" + picture(4)[34:]),
        ("TIFF whose directory points at itself", "tif", b"II*\0" + struct.pack("<IHI", 8, 0, 8)),
        ("TIFF whose directory lies beyond the end", "tif", b"II*\0" + struct.pack("<I", 2**31)),
        ("TIFF with 65,535 bits a sample", "tif", tiff(8, 8, bits=65535)),
        ("BMP of negative width", "bmp", bmp(-8, 8)),
        ("PGM with letters for sides", "pgm", b"P5 a b 255\n" + bytes(9)),
        ("JPEG of its first marker", "jpg", b"\xff\xd8\xff"),
        ("EPS under the name of a PNG", "png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        ("SVG under the name of a PNG", "png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    )
]


def plain_modes() -> list[Case]:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    colour = Image.open(io.BytesIO(picture(5)))
    deep = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16))
    floats = Image.fromarray(np.linspace(-2, 3, 64, dtype=np.float32).reshape(8, 8))
    whole = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.int32))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    def same(values: Any) -> Any:
        return lambda data: np.array_equal(np.asarray(data.images[0]).squeeze(), values)

    def close(values: Any, far: float) -> Any:
        return lambda data: np.abs(data.images[0].transpose(1, 2, 0).astype(float) - np.asarray(values)).max() <= far

    made = (
        ("1 bit", "png", encoded(grey.convert("1"), "PNG"), (1, 8, 8), lambda d: set(np.unique(d.images)) <= {0, 255}),
        ("grey", "png", encoded(grey, "PNG"), (1, 8, 8), same(np.asarray(grey))),
        (
            "palette",
            "png",
            encoded(colour.convert("P"), "PNG"),
            (3, 8, 8),
            close(colour.convert("P").convert("RGB"), 0),
        ),
        ("palette with transparency", "gif", encoded(colour.convert("P"), "GIF", transparency=0), (3, 8, 8), None),
        ("16-bit grey", "png", encoded(deep, "PNG"), (1, 8, 8), same(np.asarray(deep))),
        ("16-bit grey TIFF", "tif", encoded(deep, "TIFF"), (1, 8, 8), same(np.asarray(deep))),
        ("32-bit whole numbers that fit 16", "tif", encoded(whole, "TIFF"), (1, 8, 8), same(np.asarray(whole))),
        ("float TIFF", "tif", encoded(floats, "TIFF"), (1, 8, 8), same(np.asarray(floats))),
        (
            "CMYK JPEG",
            "jpg",
            encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
            (3, 8, 8),
            close(np.array([255, 0, 0]), 12),
        ),
        (
            "CMYK TIFF",
            "tif",
            encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"),
            (3, 8, 8),
            close(np.array([0, 255, 255]), 0),
        ),
        *([("YCbCr TIFF", "tif", encoded(colour.convert("YCbCr"), "TIFF"), (3, 8, 8), None)] if NEW else []),
        ("Lab TIFF", "tif", encoded(colour.convert("LAB"), "TIFF"), (3, 8, 8), None),
        ("clear RGBA becomes white", "png", encoded(clear, "PNG"), (3, 8, 8), same(np.full((3, 8, 8), 255))),
        ("grey with alpha", "png", encoded(grey.convert("LA"), "PNG"), (1, 8, 8), same(np.asarray(grey))),
        ("interlaced", "gif", encoded(grey, "GIF", interlace=1), (3, 8, 8), None),
        ("one pixel", "png", picture(1, (1, 1)), (3, 1, 1), None),
        ("1 x 500", "png", picture(1, (1, 500)), (3, 8, 8), None),
        ("500 x 1", "png", picture(1, (500, 1)), (3, 8, 8), None),
        ("named .jpg and is a PNG", "jpg", picture(5), (3, 8, 8), close(colour, 0)),
        ("upper-case ending", "PNG", picture(5), (3, 8, 8), close(colour, 0)),
        ("bytes after the end", "png", picture(5) + b"PK\3\4 and more" * 9, (3, 8, 8), close(colour, 0)),
        (
            "a text chunk of a megabyte",
            "png",
            png(2, 2, rows=(b"\0" + bytes(6)) * 2, extra=chunk(b"tEXt", b"k\0" + b"x" * 2**20)),
            (3, 2, 2),
            None,
        ),
        ("progressive JPEG", "jpg", encoded(colour, "JPEG", progressive=True), (3, 8, 8), None),
        (
            "animated GIF: the first frame",
            "gif",
            encoded(grey, "GIF", save_all=True, append_images=[Image.new("L", (8, 8))]),
            None,
            lambda d: d.images[0].max() > 100,
        ),
        (
            "animated PNG: the first frame",
            "png",
            encoded(grey, "PNG", save_all=True, append_images=[Image.new("L", (8, 8))]),
            (1, 8, 8),
            same(np.asarray(grey)),
        ),
        (
            "animated WebP",
            "webp",
            encoded(colour, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
            (3, 8, 8),
            None,
        ),
        (
            "TIFF of 3 pages: the first",
            "tif",
            encoded(grey, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))] * 2),
            (1, 8, 8),
            same(np.asarray(grey)),
        ),
    )
    return [
        Case(f"{what} loads", one_in_folder(f"x.{kind}", data), Loads(1, shape, check))
        for what, kind, data, shape, check in made
    ]


def one_in_folder(name: str, data: bytes) -> Any:
    return lambda folder: put(folder / "data", name, data).parent


#: Where the upper left pixel of what the camera stored ends up, by the EXIF tag: what each orientation means.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


def turned(tag: int, kind: str) -> Case:
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(Image.fromarray(stored), kind, exif=exif)
    wanted = UPRIGHT.get(tag, UPRIGHT[1])(stored)
    return Case(
        f"EXIF orientation {tag} in {kind}",
        one_in_folder(f"x.{kind.lower()}", data),
        Loads(1, (1, 8, 8), lambda d: np.array_equal(d.images[0, 0], wanted), note="EXIF"),
    )


TURNED = [turned(tag, kind) for kind in ("PNG", "TIFF") for tag in (*range(1, 9), 0, 9)]


def damaged_exif(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(3, kind="JPEG", exif=exif)
    put(folder / "data", "x.jpg", data.replace(b"II*\0", b"II\xff\xff").replace(b"MM\0*", b"MM\xff\xff"))
    return folder / "data"


def named(*names: str | bytes) -> Any:
    """A folder of good images under these names."""

    def make(folder: Path) -> Path:
        (folder / "data").mkdir()
        for i, name in enumerate(names):
            path = os.path.join(os.fsencode(folder / "data"), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(picture(i))
        return folder / "data"

    return make


def link(target: str, name: str, **good: bytes) -> Any:
    def make(folder: Path) -> Path:
        root = files(**good)(folder) if good else folder / "data"
        root.mkdir(exist_ok=True)
        (root / name).symlink_to(target)
        return root

    return make


def special(kind: Any, name: str) -> Any:
    def make(folder: Path) -> Path:
        root = among({}, "a.png", picture(1))(folder)
        put(root, "b.png", picture(2))
        kind(root, name)
        return root

    return make


def looped(folder: Path) -> Path:
    root = among({"a/1.png": picture(1), "a/2.png": picture(2)}, "b/3.png", picture(3))(folder)
    (root / "a" / "round").symlink_to(root)
    (root / "b" / "again").symlink_to(root / "a")
    return root


def deep(folder: Path) -> Path:
    put(folder, "data/" + "d/" * 200 + "x.png", picture(1))
    put(folder, "data/" + "d/" * 200 + "y.png", picture(2))
    return folder / "data"


PLACES = [
    Case("an empty folder", lambda f: f, refused("no image")),
    Case("a folder of empty folders", lambda f: (f / "a" / "b").mkdir(parents=True) or f, refused("no image")),
    Case("a folder of hidden files", named(".a.png", ".b.png"), refused("no image")),
    Case("a folder of Mac resource forks beside the images", named("._a.png", "a.png"), Loads(1)),
    Case("only damaged images", files(a_png=b"x", b_png=b"y"), refused("No readable image")),
    Case(
        "more damage than allowed",
        among(GOOD, "bad.png", b"x"),
        refused("25.0%", "bad.png"),
        options={"max_skipped": 0.01},
    ),
    Case("one image", named("a.png"), Loads(1, note="there is only one")),
    Case("one class", named("cat/a.png", "cat/b.png"), Loads(2, note="one class")),
    Case(
        "one image a class", named("cat/a.png", "dog/b.png"), Loads(2, check=lambda d: d.class_names == ["cat", "dog"])
    ),
    Case("a newline in a name", named("a\nb.png", "c.png"), Loads(2, check=lambda d: "a\nb.png" in d.ids)),
    Case("a newline in a class", named("x\ny/a.png", "z/b.png"), Loads(2, check=lambda d: d.class_names[0] == "x\ny")),
    Case(
        "letters of other alphabets", named("ä/日本.png", "ж/🙂.png"), Loads(2, check=lambda d: "ä/日本.png" in d.ids)
    ),
    Case("a name that is no UTF-8", named(b"\xff\xfe.png", "b.png"), Loads(2)),
    Case("two names that are no UTF-8 and look alike", named(b"\xff.png", b"\xfe.png"), Loads(2)),
    Case("composed and decomposed letters are two names", named("\u00e9.png", "e\u0301.png"), Loads(2)),
    Case("a script tag for a name", named("<script>alert(1)<_script>.png", "b.png"), Loads(2)),
    Case("quotes and commas in names", named('a",b.png', "c,'d.png"), Loads(2)),
    Case("a formula for a name", named("=HYPERLINK(1).png", "b.png"), Loads(2)),
    Case("names that are options", named("--help.png", "-x.png"), Loads(2)),
    Case("200 letters", named("x" * 200 + ".png", "b.png"), Loads(2)),
    Case("200 folders deep", deep, Loads(2)),
    Case("a folder called x.png", named("x.png/a.png", "x.png/b.png"), Loads(2)),
    Case("images beside folders: no classes", named("a.png", "cat/b.png"), Loads(2, check=lambda d: d.labels is None)),
    Case(
        "train and test of other classes",
        named("train/cat/a.png", "test/dog/b.png"),
        Loads(2, check=lambda d: sorted(d.split) == ["test", "train"]),
    ),
    Case(
        "a split that is not there", lambda f: f"{named('train/c/a.png', 'test/c/b.png')(f)}:val", refused("no split")
    ),
    Case("a link to nothing", link("nowhere.png", "b.png", a_png=picture(1)), skipped(1, b="cannot be read")),
    Case("only links to nothing", link("nowhere.png", "b.png"), refused("No readable image")),
    Case("a link to itself", link("b.png", "b.png", a_png=picture(1)), skipped(1, b="cannot be read")),
    Case("a link to the folder it lies in", link(".", "again", a_png=picture(1)), Loads(1, note="not entered again")),
    Case("folders linked in circles", looped, Loads(3, note="not entered again")),
    Case("a pipe among images", special(pipe, "c.png"), skipped(2, c="not a regular file")),
    Case("a socket among images", special(socket_file, "c.png"), skipped(2, c="not a regular file")),
    Case("a pipe that is metadata.csv", special(pipe, "metadata.csv"), Loads(2)),
    Case(
        "a link to /dev/zero among images",
        link("/dev/zero", "c.png", a_png=picture(1)),
        skipped(1, c="not a regular file"),
    ),
    Case("a pipe for a source, .png", lambda f: pipe(f, "x.png"), refused("not a regular file")),
    Case("a socket for a source", lambda f: socket_file(f, "x.csv"), refused("not a regular file")),
    Case("/dev/zero for a source", lambda f: "/dev/zero", refused("not a regular file")),
    Case("a source of no letters", lambda f: "", refused()),
    Case("a source with a null byte", lambda f: f"{f}/a\0b", refused()),
    Case("a source of 5,000 letters", lambda f: "x" * 5000, refused("no file")),
    Case(
        "a source that is not there, near one that is",
        lambda f: str(put(f, "photos.csv", "path\n")) + "x",
        refused("Did you mean"),
    ),
    Case("one image for a source", one("x.png", picture(1)), refused("not a source of images")),
    Case("damaged metadata", damaged_exif, Loads(1)),
    Case(
        "16-bit among 8-bit",
        among(GOOD, "deep.png", encoded(Image.fromarray(np.full((8, 8), 60000, np.uint16)), "PNG")),
        Loads(4),
    ),
    Case(
        "float among 8-bit",
        among(GOOD, "bad.tif", encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")),
        skipped(3, bad="range"),
    ),
    Case(
        "NaN in a float image",
        among(
            {"a.tif": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")},
            "b.tif",
            encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        ),
        skipped(1, b="NaN"),
    ),
    Case(
        "32-bit whole numbers beyond 16 bits",
        among(
            {"a.png": encoded(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG")},
            "b.tif",
            encoded(Image.fromarray(np.full((8, 8), 10**6, np.int32)), "TIFF"),
        ),
        skipped(1, b="outside"),
    ),
    Case("a size of 0", named("a.png", "b.png"), refused("size"), options={"size": 0}),
    Case("a size of minus 1", named("a.png", "b.png"), refused("size"), options={"size": -1}),
    Case("a size of a million", named("a.png", "b.png"), refused("size"), options={"size": 10**6}),
    Case("a limit of 0", named("a.png", "b.png"), refused("limit"), options={"limit": 0}),
    Case("more skipped than all", named("a.png"), refused("share"), options={"max_skipped": 1.5}),
    Case("an option of another modality", named("a.png"), refused("no option"), options={"rate": 16000}),
    Case("an unknown modality", named("a.png"), refused("no modality"), options={"modality": "smell"}),
]

CASES = cases("image", *DAMAGED, *CLAIMS, *ODD_CLAIMS, *plain_modes(), *TURNED, *PLACES)
