# ruff: noqa: E501 (tables of cases)
"""Graphs, clouds of points, volumes, clips, and sets of several modalities."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset as Dicom
from pydicom.dataset import FileMetaDataset

from osteon.modalities.sound import encode_wav
from osteon.modalities.video import animation
from tests.malformed.kit import (
    READS_NULL,
    Case,
    Loads,
    among,
    cases,
    listed,
    npy,
    npz,
    one,
    picture,
    pipe,
    put,
    refused,
    skipped,
)

RNG = np.random.default_rng(0)

# -- graphs -------------------------------------------------------------------------------------------------------------

EDGES = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
FEATURES = RNG.normal(size=(5, 3))


def graph(what: str, rule: Any, **arrays: Any) -> Case:
    return Case(what, one("g.npz", npz(**{"edges": EDGES, **arrays})), rule)


GRAPHS = [
    graph("as it should be", Loads(5), features=FEATURES),
    graph("no feature", Loads(5)),
    graph("no edge", Loads(5), edges=np.zeros((2, 0), int), features=FEATURES),
    graph("nothing at all", refused(), edges=np.zeros((2, 0), int)),
    graph("an edge beyond the nodes", refused("node 99"), edges=np.array([[0], [99]]), features=FEATURES),
    graph("an edge to node -1", refused("node -1"), edges=np.array([[0], [-1]]), features=FEATURES),
    graph("an edge to node 2^40", refused(), edges=np.array([[0], [2**40]])),
    graph("an edge to node 2^63 - 1", refused(), edges=np.array([[0], [2**63 - 1]])),
    graph("an edge to node 2^64 - 1", refused(), edges=np.array([[0], [2**64 - 1]], np.uint64)),
    graph("edges that are fractions", refused("edges"), edges=EDGES + 0.5),
    graph("edges of three ends", refused("edges"), edges=np.zeros((3, 5), int)),
    graph("edges that are words", refused("edges"), edges=np.array([["a"], ["b"]])),
    graph(
        "edges from nodes to themselves",
        Loads(5, note="to itself"),
        edges=np.array([[0, 1], [0, 2]]),
        features=FEATURES,
    ),
    graph("the same edge five times", Loads(5), edges=np.array([[0] * 5, [1] * 5]), features=FEATURES),
    graph("NaN in a feature", refused("Node 2"), features=np.where(np.arange(5)[:, None] == 2, np.nan, FEATURES)),
    graph("no column of features", refused("features"), features=np.zeros((5, 0))),
    graph("features of three sides", refused("features"), features=np.zeros((5, 2, 2))),
    graph("features for fewer nodes", refused(), features=FEATURES[:3]),
    graph("numbers of nodes that differ", refused("differ"), features=FEATURES, nodes=np.array(9)),
    graph("nodes that are a list", refused(), nodes=np.array([5, 6])),
    graph("nodes that are a word", refused(), nodes=np.array("x")),
    graph("minus 5 nodes", refused(), nodes=np.array(-5)),
    graph("10^15 nodes", refused(), nodes=np.array(10**15)),
    graph("labels for fewer nodes", refused(), features=FEATURES, labels=np.arange(3)),
    graph("labels of NaN", refused(), features=FEATURES, labels=np.full(5, np.nan)),
    graph("one class", Loads(5, note="one class"), features=FEATURES, labels=np.zeros(5, int)),
    graph(
        "labels without a name", refused("no name"), features=FEATURES, labels=np.arange(5), class_names=np.array(["a"])
    ),
    graph(
        "masks that overlap",
        refused("overlap"),
        features=FEATURES,
        train_mask=np.ones(5, bool),
        test_mask=np.ones(5, bool),
    ),
    graph("a mask of another length", refused("mask"), features=FEATURES, train_mask=np.ones(3, bool)),
    graph("a mask of numbers beyond", refused("mask"), features=FEATURES, train_mask=np.array([99])),
    graph("a mask of words", refused("mask"), features=FEATURES, train_mask=np.array(["a", "b"])),
    graph("a mask of two sides", refused("mask"), features=FEATURES, train_mask=np.ones((5, 2), bool)),
    graph("ids for fewer nodes", refused("ids"), features=FEATURES, ids=np.array(["a"])),
    graph("the same id for all", Loads(5), features=FEATURES, ids=np.array(["a"] * 5)),
    graph("weights of NaN", refused("positive"), features=FEATURES, weights=np.full(5, np.nan)),
    graph("weights of 0", refused("positive"), features=FEATURES, weights=np.zeros(5)),
    graph("weights for fewer edges", refused("weights"), features=FEATURES, weights=np.ones(2)),
    graph("weights that are words", refused(), features=FEATURES, weights=np.array(list("abcde"))),
    graph("edges between graphs", refused("two graphs"), features=FEATURES, graph=np.array([0, 0, 1, 1, 1])),
    graph(
        "a graph without a node",
        refused("Graph 1"),
        edges=np.array([[0], [1]]),
        features=FEATURES,
        graph=np.array([0, 0, 0, 2, 2]),
    ),
    graph(
        "graph number 10^15",
        refused(),
        edges=np.array([[0], [1]]),
        features=FEATURES,
        graph=np.array([0, 0, 0, 0, 10**15]),
    ),
    graph("graphs that are fractions", refused("graph"), features=FEATURES, graph=np.zeros(5) + 0.5),
    graph(
        "compressed rows that do not fit",
        refused("compressed"),
        data=np.ones(3),
        indices=np.zeros(3, int),
        indptr=np.array([0, 9, 3]),
    ),
    graph(
        "compressed rows of fractions",
        refused(),
        data=np.ones(3),
        indices=np.array([0.5, 1, 2]),
        indptr=np.array([0, 1, 1, 2, 2, 3]),
    ),
    graph("compressed rows of no row", refused(), data=np.ones(0), indices=np.zeros(0, int), indptr=np.zeros(0, int)),
    graph(
        "a width of 10^15",
        refused(),
        data=np.ones(3),
        indices=np.arange(3),
        indptr=np.array([0, 1, 1, 2, 2, 3]),
        width=np.array(10**15),
    ),
]
GRAPHS += [
    Case(what, listed(text, "edges.csv"), rule)
    for what, text, rule in (
        ("a list of edges", "source,target\na,b\nb,c\n", Loads(3)),
        ("a header alone", "source,target\n", refused()),
        ("a ragged row", "source,target\na,b\nc\n", refused("cells")),
        ("a weight that is a word", "source,target,weight\na,b,x\n", refused()),
        ("weights of infinity", "source,target,weight\na,b,inf\n", refused()),
        ("an open quote", 'source,target\n"a,b\n', refused()),
        ("empty names", "source,target\n,b\na,b\n", refused()),
        ("Latin-1", "source,target\n\xfc,b\n".encode("latin-1"), refused()),
        ("a cell of 200,000 letters", "source,target\na," + "x" * 200_000 + "\n", refused()),
        ("null bytes", "source,target\n\0,b\n", Loads(2) if READS_NULL else refused("cannot be read")),
    )
]


def beside(nodes: str) -> Any:
    return lambda f: put(f, "nodes.csv", nodes) and put(f, "edges.csv", "source,target\na,b\nb,c\n")


GRAPHS += [
    Case(f"nodes.csv {what}", beside(text), rule)
    for what, text, rule in (
        ("as it should be", "id,label,f\na,x,1\nb,y,2\nc,x,3\n", Loads(3)),
        ("lacks a node", "id,f\na,1\nb,2\n", refused("'c'")),
        ("has a node twice", "id,f\na,1\na,1\nb,2\nc,3\n", refused("twice")),
        ("has no ids", "name,f\na,1\nb,2\nc,3\n", refused("'id'")),
        ("has words for features", "id,f\na,1\nb,x\nc,3\n", refused()),
        ("has NaN for a feature", "id,f\na,1\nb,nan\nc,3\n", refused()),
        ("is empty", "", refused()),
        ("has a label for some", "id,label\na,x\nb,\nc,x\n", refused("no label")),
        ("has two columns of one name", "id,f,f\na,1,2\nb,1,2\nc,1,2\n", refused()),
    )
]
GRAPHS += [
    Case(
        "a folder with a pipe",
        lambda f: put(f, "a.npz", npz(edges=EDGES)) and put(f, "b.npz", npz(edges=EDGES)) and pipe(f, "c.npz") and f,
        skipped(2, c="regular"),
    )
]
GRAPHS += [
    Case(f"{key} = {value!r}", one("g.npz", npz(edges=EDGES, features=FEATURES)), refused(key), options={key: value})
    for key, value in (("nodes", -1), ("nodes", "x"), ("nodes", 10**8), ("hops", -1), ("features", "odd"))
]

# -- clouds of points -------------------------------------------------------------------------------------------------

CLOUD = RNG.normal(size=(40, 3))


def ply(
    points: int | str = 2, body: bytes = b"0 0 0\n1 1 1\n", form: str = "ascii 1.0", more: str = "", kind: str = "float"
) -> bytes:
    return (
        f"ply\nformat {form}\nelement vertex {points}\nproperty {kind} x\nproperty {kind} y\nproperty {kind} z\n{more}end_header\n"
    ).encode() + body


ROWS = "\n".join(" ".join(f"{v:.4f}" for v in row) for row in CLOUD)
GOOD = {"a.ply": ply(40, ROWS.encode()), "b.ply": ply(40, ROWS.encode())}
FACE = "element face {n}\nproperty list uchar int vertex_indices\n"
POINTS = [
    Case(f"{name.split('.')[1]}, {what}", among(GOOD, name, data), skipped(2, bad=reason))
    for name, what, data, reason in (
        ("bad.ply", "0 bytes", b"", "empty"),
        ("bad.ply", "no header", b"plyply\n", "no PLY header"),
        ("bad.ply", "wrong magic", b"OFF\n" + ply(), "no PLY header"),
        ("bad.ply", "a count of 10^18", ply(10**18), "claims"),
        ("bad.ply", "a binary count of 10^18", ply(10**18, bytes(24), "binary_little_endian 1.0"), "claims"),
        ("bad.ply", "a count of 5,000 digits", ply("9" * 5000), ""),
        ("bad.ply", "a negative count", ply("-1"), "PLY header"),
        ("bad.ply", "no point", ply(0, b""), "no point"),
        ("bad.ply", "cut short", ply(40, ROWS.encode()[:200]), "claims"),
        ("bad.ply", "a word for a number", ply(2, b"0 0 0\n1 x 1\n"), "no number"),
        ("bad.ply", "NaN", ply(2, b"0 0 0\nnan 1 1\n"), "NaN"),
        ("bad.ply", "beyond 1e30", ply(2, b"0 0 0\n1e39 1 1\n"), "1e30"),
        ("bad.ply", "an unknown format", ply(form="ascii2 1.0"), "format"),
        ("bad.ply", "an unknown type", ply(kind="quad"), "PLY header"),
        ("bad.ply", "no x", ply().replace(b"float x", b"float w"), "without x"),
        (
            "bad.ply",
            "a face beyond the points",
            ply(2, b"0 0 0\n1 1 1\n3 0 1 9\n", more=FACE.format(n=1)),
            "names point 9",
        ),
        ("bad.ply", "10^18 faces", ply(2, b"0 0 0\n1 1 1\n3 0 1 1\n", more=FACE.format(n=10**18)), "claims"),
        (
            "bad.ply",
            "a face that ends too early",
            ply(2, bytes(24) + b"\xff\0\0\0\0", "binary_little_endian 1.0", FACE.format(n=1)),
            "ends within",
        ),
        *(
            ("bad.ply", f"a face of NaN {what}", ply(2, bytes(24) + data, "binary_little_endian 1.0", more), "not whole")
            for what, data, more in (
                ("corners", b"\0\0\xc0\x7f" * 4, "element face 1\nproperty list float int vertex_indices\n"),
                ("points", b"\1\0\0\xc0\x7f", "element face 1\nproperty list uchar float vertex_indices\n"),
            )
        ),
        (
            "bad.ply",
            "10^18 rows of nothing",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000000000000000\nend_header\n",
            "",
        ),
        (
            "bad.ply",
            "10^12 lists of nothing",
            b"ply\nformat ascii 1.0\nelement e 999999999999\nelement vertex 2\nend_header\n",
            "",
        ),
        (
            "bad.ply",
            "an element without properties",
            b"ply\nformat ascii 1.0\nelement e 1\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n\n0 0 0\n",
            "",
        ),
        ("bad.off", "0 bytes", b"", "empty"),
        ("bad.off", "wrong magic", b"FOO 3\n", "OFF"),
        ("bad.off", "a count of 10^18", b"OFF\n1000000000000000000 0 0\n0 0 0\n", "claims"),
        ("bad.off", "no counts", b"OFF\n", "counts"),
        ("bad.off", "a face beyond", b"OFF\n2 1 0\n0 0 0\n1 1 1\n3 0 1 7\n", "names point"),
        ("bad.off", "a face of 10^9 corners", b"OFF\n2 1 0\n0 0 0\n1 1 1\n1000000000 0 1\n", "corners"),
        ("bad.off", "superscript digits", "OFF\n² 0 0\n0 0 0\n".encode(), ""),
        ("bad.off", "a face of -1 corners", b"OFF\n2 1 0\n0 0 0\n1 1 1\n-1\n", "corners"),
        ("bad.off", "not text", b"OFF\n\xff\xfe\xfd", "no text"),
        ("bad.xyz", "words", b"a b c\nd e f\n", ""),
        ("bad.xyz", "two numbers a row", b"1 2\n3 4\n", "takes 3"),
        ("bad.xyz", "a ragged row", b"1 2 3\n4 5\n", "row 2"),
        ("bad.xyz", "a count that lies", b"5\n1 2 3\n4 5 6\n", "claims"),
        ("bad.xyz", "superscript digits", "²\n1 2 3\n".encode(), ""),
        ("bad.xyz", "not text", bytes(range(256)), "no text"),
    )
]
POINTS += [
    Case("one point", among({}, "a.ply", ply(1, b"1 2 3\n")), refused("one place")),
    Case("one place 40 times", among({}, "a.xyz", b"1 2 3\n" * 40), refused("one place")),
    Case("an npz of integers", one("x.npz", npz(points=RNG.integers(-9, 9, (4, 40, 3)))), Loads(4)),
    Case(
        "an npz of NaN in one",
        one("x.npz", npz(points=np.where(np.arange(4)[:, None, None] == 2, np.nan, RNG.normal(size=(4, 40, 3))))),
        Loads(check=lambda d: [s.reason for s in d.skipped] == ["contains NaN or infinity"]),
    ),
    Case("an npz of two numbers a point", one("x.npz", npz(points=np.zeros((4, 40, 2)))), refused()),
    Case("an npz of no cloud", one("x.npz", npz(points=np.zeros((0, 40, 3)))), refused("empty")),
    *(
        Case(f"{key} = {value!r}", among({}, "a.ply", GOOD["a.ply"]), refused(key), options={key: value})
        for key, value in (
            ("points", -1),
            ("points", "x"),
            ("points", 10**9),
            ("features", -2),
            ("draw", "luck"),
            ("mesh", "net"),
            ("fit", "box"),
            ("up", "w"),
        )
    ),
]

# -- volumes --------------------------------------------------------------------------------------------------------------


def nifti(
    shape: tuple[int, ...] = (8, 8, 8),
    *,
    code: int = 4,
    body: bytes | None = None,
    magic: bytes = b"n+1\0",
    offset: float = 352.0,
    size: int = 348,
    slope: float = 1.0,
    srow: tuple[float, ...] = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
    sides: int | None = None,
) -> bytes:
    head = bytearray(352)
    struct.pack_into("<i", head, 0, size)
    dims = [len(shape) if sides is None else sides, *shape, *[1] * (7 - len(shape))]
    struct.pack_into("<8h", head, 40, *(((d + 2**15) % 2**16) - 2**15 for d in dims))
    struct.pack_into("<hh", head, 70, code, 16)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<fff", head, 108, offset, slope, 0.0)
    struct.pack_into("<h", head, 254, 1)
    struct.pack_into("<12f", head, 280, *srow)
    head[344:348] = magic
    return bytes(head) + (RNG.integers(0, 999, int(np.prod(shape)), dtype=np.int16).tobytes() if body is None else body)


SCANS = {"a.nii": nifti(), "b.nii": nifti()}
VOLUMES = [
    Case(f"nifti, {what}", among(SCANS, name, data), skipped(2, bad=reason))
    for what, name, data, reason in (
        ("0 bytes", "bad.nii", b"", "empty"),
        ("100 bytes", "bad.nii", nifti()[:100], "truncated"),
        ("cut in the values", "bad.nii", nifti()[:600], "truncated"),
        ("wrong magic", "bad.nii", nifti(magic=b"abcd"), "not a NIfTI"),
        ("half of a pair", "bad.nii", nifti(magic=b"ni1\0"), "pair"),
        ("32,767 a side", "bad.nii", nifti((32767, 32767, 32767), body=bytes(99)), "more than the limit"),
        ("a negative side", "bad.nii", nifti((-8, 8, 8), body=bytes(99)), "impossible"),
        ("0 sides", "bad.nii", nifti(sides=0), "impossible"),
        ("99 sides", "bad.nii", nifti(sides=99), "impossible"),
        ("two sides", "bad.nii", nifti((8, 8)), "no volume"),
        ("five sides", "bad.nii", nifti((4, 4, 4, 2, 2)), "5 sides"),
        ("an unknown type", "bad.nii", nifti(code=999), "type"),
        ("colours", "bad.nii", nifti(code=128), "type"),
        ("values before the header", "bad.nii", nifti(offset=-5.0), "begin at"),
        ("values beyond the end", "bad.nii", nifti(offset=1e9), "truncated"),
        ("NaN for an offset", "bad.nii", nifti(offset=float("nan")), "begin"),
        ("an affine of zeros", "bad.nii", nifti(srow=(0,) * 12), "affine"),
        ("an affine of NaN", "bad.nii", nifti(srow=(float("nan"),) * 12), "affine"),
        (
            "NaN in the values",
            "bad.nii",
            nifti((8, 8, 8), code=16, body=np.full(512, np.nan, np.float32).tobytes()),
            "NaN",
        ),
        ("a damaged gzip", "bad.nii.gz", gzip.compress(nifti())[:200], ""),
        ("a gzip of nothing", "bad.nii.gz", gzip.compress(b""), "truncated"),
        ("no gzip at all", "bad.nii.gz", nifti(), ""),
        ("a gzip that claims 500 MB", "bad.nii.gz", gzip.compress(nifti((630, 630, 630), body=bytes(9))), "truncated"),
        ("a gzip whose values begin at 2 GB", "bad.nii.gz", gzip.compress(nifti(offset=2e9)), ""),
    )
]
VOLUMES += [
    Case(
        f"{key} = {value!r}",
        among({}, "a.nii", SCANS["a.nii"]),
        refused(key if key != "extent" or value != 10**6 else "limit"),
        options={key: value},
    )
    for key, value in (
        ("spacing", -1),
        ("spacing", "x"),
        ("spacing", [1, 2]),
        ("spacing", float("nan")),
        ("extent", -4),
        ("extent", 10**6),
        ("extent", 2.5),
        ("window", [5, 1]),
        ("window", "xray"),
    )
]


def slices(change: Any = lambda i, s: None, count: int = 5) -> Any:
    def make(folder: Path) -> Path:
        for scan in ("a", "b"):
            for i in range(count):
                meta = FileMetaDataset()
                meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
                    pydicom.uid.ExplicitVRLittleEndian,
                    "1.2",
                    f"1.3.{i}",
                )
                s = Dicom()
                s.file_meta, s.SOPClassUID, s.SOPInstanceUID, s.SeriesInstanceUID = meta, "1.2", f"1.3.{i}", "1.4"
                s.Rows, s.Columns, s.BitsAllocated, s.BitsStored, s.HighBit, s.PixelRepresentation = 8, 8, 16, 16, 15, 0
                s.SamplesPerPixel, s.PhotometricInterpretation = 1, "MONOCHROME2"
                s.ImageOrientationPatient, s.ImagePositionPatient, s.PixelSpacing = (
                    [1, 0, 0, 0, 1, 0],
                    [0, 0, 2 * i],
                    [1, 1],
                )
                s.PixelData = RNG.integers(0, 999, 64, dtype=np.uint16).tobytes()
                if scan == "b":
                    change(i, s)
                path = folder / "data" / scan / f"{i}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                s.save_as(path, enforce_file_format=True)
        return folder / "data"

    return make


def lying(i: int, s: Any) -> None:
    s.Rows = s.Columns = 65535


VOLUMES += [Case("dicom as it should be", slices(), Loads(2))] + [
    Case(f"dicom, {what}", slices(change), skipped(1, b=reason))
    for what, change, reason in (
        ("one slice elsewhere", lambda i, s: setattr(s, "ImagePositionPatient", [0, 0, 50 * i * i]), "lacks slices"),
        ("all slices in one place", lambda i, s: setattr(s, "ImagePositionPatient", [0, 0, 0]), "twice"),
        ("no places", lambda i, s: s.__delattr__("ImagePositionPatient"), "without a place"),
        ("65,535 pixels a side", lying, ""),
        ("no rows", lambda i, s: s.__delattr__("Rows"), ""),
        ("pixels cut short", lambda i, s: setattr(s, "PixelData", bytes(20)), ""),
        ("no pixels", lambda i, s: s.__delattr__("PixelData"), ""),
        ("other series", lambda i, s: setattr(s, "SeriesInstanceUID", f"1.4.{i}"), "series"),
        ("a place beyond all", lambda i, s: setattr(s, "ImagePositionPatient", [0, 0, 1e308]), ""),
        ("a spacing of 0", lambda i, s: setattr(s, "PixelSpacing", [0, 0]), ""),
        ("an orientation of 0", lambda i, s: setattr(s, "ImageOrientationPatient", [0] * 6), ""),
    )
]
VOLUMES += [
    Case("dicom, a slice of noise", lambda f: put(slices()(f), "b/9.dcm", bytes(300)).parents[1], skipped(1, b="9.dcm")),
    Case(
        "dicom, a slice that is a pipe",
        lambda f: pipe(slices()(f), "b/9.dcm").parents[1],
        Loads(check=lambda d: len(d) == 1 and sorted(s.id for s in d.skipped) == ["b", "b/9.dcm"]),
    ),
]

# -- clips ------------------------------------------------------------------------------------------------------------------

FRAMES = RNG.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)


def film(kind: str = "mp4", codec: str = "mpeg4", count: int = 8) -> bytes:
    import av

    memory = io.BytesIO()
    with av.open(memory, "w", format={"mkv": "matroska"}.get(kind, kind)) as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode())
    return memory.getvalue()


FILM = film()
CLIPS = {"a.mp4": FILM, "b.mp4": FILM}
VIDEOS = [
    Case(f"film, {what}", among(CLIPS, name, data), skipped(2, bad=""))
    for what, name, data in (
        ("0 bytes", "bad.mp4", b""),
        ("9 bytes", "bad.mp4", FILM[:9]),
        ("cut in the middle", "bad.mp4", FILM[: len(FILM) // 2]),
        ("noise", "bad.mp4", bytes(range(256)) * 9),
        ("text", "bad.mkv", b"not a film " * 30),
        ("one frame", "bad.mp4", film(count=1)),
        ("a picture of one frame", "bad.mp4", picture(1)),
        ("a box that claims 4 GB", "bad.mp4", b"\xff\xff\xff\xffftypisom" + bytes(90)),
        ("a box within itself", "bad.mp4", FILM[:40] + b"\0\0\0\0moov" * 30),
        ("sound alone", "bad.mkv", encode_wav(np.zeros(900), 8000)),
        ("a playlist", "bad.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
        ("a list of files", "bad.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    )
]
VIDEOS += [Case("films as they should be", among({}, "a.avi", film("avi")), Loads(1))]
ASKED = {"modality": "video"}
GIFS = {"a.gif": animation(FRAMES), "b.gif": animation(FRAMES)}
VIDEOS += [
    Case(f"gif, {what}", among(GIFS, "bad.gif", data), skipped(2, bad=""), options=ASKED)
    for what, data in (
        ("0 bytes", b""),
        ("one frame", picture(1, kind="GIF")),
        ("cut within the first frame", animation(FRAMES)[:200]),
        ("4 thousand million pixels", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"\x2c" + bytes(20)),
    )
]
VIDEOS += [
    Case(what, one("v.npz", npz(video=values)), rule)
    for what, values, rule in (
        ("arrays", np.stack([FRAMES] * 3), Loads(3)),
        ("one frame each", np.stack([FRAMES[:1]] * 3), refused("1 frame")),
        ("no frame", np.zeros((3, 0, 4, 4), np.uint8), refused("empty")),
        ("5 channels", np.zeros((3, 4, 8, 8, 5), np.uint8), refused("channels")),
        ("floats beyond 1", np.full((3, 4, 8, 8), 7.0), refused("[0, 1]")),
        ("NaN", np.full((3, 4, 8, 8), np.nan), refused("NaN")),
        ("int64", np.zeros((3, 4, 8, 8), np.int64), refused("int64")),
    )
]
VIDEOS += [
    Case(f"{key} = {value!r}", among({}, "a.gif", GIFS["a.gif"]), refused(word), options={**ASKED, key: value})
    for key, value, word in (
        ("frames", -3, "frames"),
        ("frames", "x", "frames"),
        ("frames", 10**9, "limit"),
        ("stride", -1, "stride"),
        ("stride", 1.5, "stride"),
        ("size", 0, "size"),
        ("size", 10**6, "limit"),
    )
]
VIDEOS += [
    Case(
        "folders of frames of two sizes",
        lambda f: [put(f, f"{c}/{i}.png", picture(i, (8 + (c == "b") * i, 8))) for c in "ab" for i in range(4)] and f,
        skipped(1, b="sizes"),
        options=ASKED,
    ),
    Case(
        "folders with a damaged frame",
        lambda f: (
            [put(f, f"{c}/{i}.png", b"x" if (c, i) == ("b", 1) else picture(i)) for c in "ab" for i in range(4)] and f
        ),
        skipped(1, b=""),
        options=ASKED,
    ),
]

# -- several ----------------------------------------------------------------------------------------------------------------

WAV = encode_wav(np.sin(np.arange(4000) / 5), 8000)
PARTS = {"a_png": picture(1), "b_png": picture(2), "c_png": picture(3), "a_wav": WAV, "b_wav": WAV, "x_wav": b"noise"}
SEVERAL = [
    Case(what, listed("image,sound,label\n" + text, **PARTS), rule)
    for what, text, rule in (
        ("as it should be", "a.png,a.wav,x\nb.png,b.wav,y\n", Loads(2)),
        ("members missing", "a.png,,x\n,b.wav,y\n", Loads(2)),
        ("a row of nothing", "a.png,a.wav,x\n,,y\n", refused("none of")),
        ("a ragged row", "a.png,a.wav\n", refused("cells")),
        ("a header alone", "", refused("no rows")),
        ("a damaged member", "a.png,a.wav,x\nb.png,x.wav,y\nc.png,b.wav,y\n", skipped(2, **{"b.png": "sound"})),
        ("a member that is not there", "a.png,a.wav,x\nb.png,zz.wav,y\n", skipped(1, **{"b.png": "not found"})),
        ("one member of nobody", "a.png,,x\nb.png,,y\n", refused("'sound'")),
        ("a member that is a null byte", "a.png,\0,x\nb.png,a.wav,y\n", refused("null")),
    )
]
SEVERAL += [
    Case(what, listed(text, **PARTS), rule)
    for what, text, rule in (
        ("text among them", "image,text\na.png,a cat\nb.png,a dog and a cat\n", Loads(2)),
        ("a text of 100,000 letters", "image,text\na.png," + "word " * 20_000 + "\nb.png,x\n", Loads(2)),
        ("the same column twice", "image,image,sound\na.png,b.png,a.wav\n", refused("twice")),
        ("two names of one modality", "image,picture,sound\na.png,b.png,a.wav\n", refused("twice")),
        ("the same id twice", "id,image,sound\nk,a.png,a.wav\nk,b.png,b.wav\n", Loads(2)),
        ("an unknown pair", "image,smell\na.png,b\n", Loads(1)),
    )
]

CASES = (
    cases("graph", *GRAPHS)
    + cases("points", *POINTS)
    + cases("volume", *VOLUMES)
    + cases("video", *VIDEOS)
    + cases("several", *SEVERAL)
)
_ = npy
