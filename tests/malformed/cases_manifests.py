"""Manifests of files: csv, tsv and parquet with every way a table of paths goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.malformed.kit import Case, Loads, cases, listed, one, picture, pipe, put, refused, skipped

A, B, C = picture(1), picture(2), picture(3)
THREE = {"a_png": A, "b_png": B, "c_png": C}
ROWS = "a.png,x\nb.png,y\nc.png,x\n"


def parquet(name: str = "x.parquet", **columns: Any) -> Any:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / name)
        return folder / name

    return make


def text(body: bytes | str) -> Any:
    return listed(body, **THREE)


def outside(folder: Path) -> Path:
    put(folder, "outside.png", A)
    return listed("path\n../outside.png\na.png\n", **THREE)(folder)


def absolute(folder: Path) -> Path:
    there = put(folder / "elsewhere", "x.png", A)
    return listed(f"path\n{there}\na.png\n", **THREE)(folder)


def piped(folder: Path) -> Path:
    made = text("path\na.png\np.png\n")(folder)
    pipe(made.parent, "p.png")
    return made


def foldered(folder: Path) -> Path:
    made = text("path\na.png\nsub.png\n")(folder)
    (made.parent / "sub.png").mkdir()
    return made


def escaped_link(folder: Path) -> Path:
    made = text("path\na.png\nround.png\n")(folder)
    (made.parent / "round.png").symlink_to("round.png")
    return made


CSV = [
    Case("as it should be", text("path,label\n" + ROWS), Loads(3, check=lambda d: d.labels.tolist() == [0, 1, 0])),
    Case("0 bytes", text(""), refused("empty")),
    Case("blank lines only", text("\n\n \n,,\n"), refused()),
    Case("a byte-order mark", text(b"\xef\xbb\xbfpath,label\n" + ROWS.encode()), Loads(3)),
    Case("a byte-order mark alone", text(b"\xef\xbb\xbf"), refused("empty")),
    Case("UTF-16", text(("path,label\n" + ROWS).encode("utf-16")), refused("UTF-8")),
    Case("UTF-32", text(("path,label\n" + ROWS).encode("utf-32")), refused()),
    Case("Latin-1", text("path,label\na.png,Gr\xfcn\n".encode("latin-1")), refused("UTF-8")),
    Case("null bytes", text(b"path,label\na.png,x\0y\nb.png,z\n"), refused("null")),
    Case("only null bytes", text(bytes(300)), refused()),
    Case("line ends of CR", text("path,label\ra.png,x\rb.png,y\r"), Loads(2)),
    Case("line ends of CR LF", text("path,label\r\na.png,x\r\nb.png,y\r\n"), Loads(2)),
    Case("line ends of every kind", text("path,label\na.png,x\r\nb.png,y\rc.png,x\n"), Loads(3)),
    Case("no line end at the end", text("path\na.png\nb.png"), Loads(2)),
    Case("semicolons", text("path;label\na.png;x\nb.png;y\n"), Loads(2)),
    Case("tabs in .tsv", listed("path\tlabel\na.png\tx\nb.png\ty\n", "list.tsv", **THREE), Loads(2)),
    Case(
        "quoted cells",
        text('"path","label"\n"a.png","x, y"\n"b.png","say ""z"""\n'),
        Loads(2, check=lambda d: d.class_names == ['say "z"', "x, y"]),
    ),
    Case(
        "a newline in a quoted cell",
        text('path,label\na.png,"x\ny"\nb.png,z\n'),
        Loads(2, check=lambda d: "x\ny" in d.class_names),
    ),
    Case("an open quote", text('path,label\na.png,"x\nb.png,y\n'), refused("cannot be read")),
    Case("a quote within a cell", text('path,label\na.png,x"y\nb.png,z\n'), Loads(2)),
    Case("text after a quoted cell", text('path,label\n"a.png"x,y\n'), refused("cannot be read")),
    Case("a row too short", text("path,label\na.png,x\nb.png\n"), refused("Row 3 has 1 cells")),
    Case("a row too long", text("path,label\na.png,x\nb.png,y,z\n"), refused("Row 3 has 3 cells")),
    Case("a header alone", text("path,label\n"), refused("no rows")),
    Case("rows without a header", text(ROWS), refused("no column of paths")),
    Case("a column of another name", text("pth,label\n" + ROWS), refused("no column of paths", "pth")),
    Case("two columns of paths of one name", text("path,path\na.png,b.png\n"), refused("twice")),
    Case("two columns of labels", text("path,label,label\na.png,x,y\n"), refused("twice")),
    Case("upper-case names with blanks", text(" Path , LABEL \na.png,x\nb.png,y\n"), Loads(2)),
    Case("no path in a row", text("path,label\n,x\na.png,y\n"), refused("no path")),
    Case("a file that is not there", text("path\na.png\nnot-there.png\n"), skipped(1, **{"not-there": "not found"})),
    Case("none of the files is there", text("path\nx.png\ny.png\n"), refused("No readable image")),
    Case("a folder for a file", foldered, skipped(1, sub="not a regular file")),
    Case("a pipe for a file", piped, skipped(1, p="not a regular file")),
    Case("a link to itself for a file", escaped_link, skipped(1, round="")),
    Case(
        "the same file three times",
        text("path\na.png\na.png\na.png\n"),
        Loads(3, check=lambda d: d.ids == ["a.png", "a.png#2", "a.png#3"]),
    ),
    Case("a name that looks like a counted one", text("path\na.png\na.png#2\na.png\n"), skipped(2, **{"a.png#2": ""})),
    Case("a file above the folder", outside, Loads(2)),
    Case("an absolute path", absolute, Loads(2)),
    Case("a path of 5,000 letters", text("path\na.png\n" + "x" * 5000 + ".png\n"), skipped(1, xxxx="")),
    Case("no path but one of 5,000 letters", text("path\n" + "x" * 5000 + ".png\n"), refused("No readable image")),
    Case("a path with a null byte", text(b"path\na.png\nb\0c.png\n"), refused("null")),
    Case(
        "a path that is a web address", text("path\na.png\nhttps://example.org/x.png\n"), skipped(1, http="not found")
    ),
    Case("a path with backslashes", text("path\na.png\nsub\\b.png\n"), skipped(1, sub="not found")),
    Case("a label for some", text("path,label\na.png,x\nb.png,\n"), refused("no label")),
    Case("a label for none", text("path,label\na.png,\nb.png,\n"), Loads(2, check=lambda d: d.labels is None)),
    Case("one class", text("path,label\na.png,x\nb.png,x\n"), Loads(2, note="one class")),
    Case("a class a sample", text("path,label\na.png,x\nb.png,y\nc.png,z\n"), Loads(3)),
    Case(
        "huge whole numbers for labels",
        text(f"path,label\na.png,{10**30}\nb.png,{-(10**30)}\n"),
        Loads(2, check=lambda d: d.class_names == sorted([str(10**30), str(-(10**30))])),
    ),
    Case("labels of 5,000 digits", text(f"path,label\na.png,{'9' * 5000}\nb.png,1\n"), Loads(2)),
    Case(
        "whole numbers sorted by value",
        text("path,label\na.png,10\nb.png,9\nc.png,-1\n"),
        Loads(3, check=lambda d: d.class_names == ["-1", "9", "10"]),
    ),
    Case(
        "1 and 01 are two classes",
        text("path,label\na.png,1\nb.png,01\n"),
        Loads(2, check=lambda d: len(d.class_names) == 2),
    ),
    Case(
        "numbers and words for labels",
        text("path,label\na.png,1\nb.png,cat\nc.png,1.5\n"),
        Loads(3, check=lambda d: d.class_names == ["1", "1.5", "cat"]),
    ),
    Case("digits of other alphabets", text("path,label\na.png,٣\nb.png,३\n"), Loads(2)),
    Case("NaN and None are names", text("path,label\na.png,NaN\nb.png,None\n"), Loads(2)),
    Case(
        "several labels",
        text("path,labels\na.png,x|y\nb.png,\nc.png,y;z\n"),
        Loads(3, check=lambda d: d.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]),
    ),
    Case("a script tag for a label", text("path,label\na.png,<script>alert(1)</script>\nb.png,y\n"), Loads(2)),
    Case("a cell of 200,000 letters", text(f"path,label\na.png,{'x' * 200_000}\n"), refused("field larger")),
    Case(
        "50,000 columns",
        text("path," + ",".join(f"c{i}" for i in range(50_000)) + "\na.png" + "," * 50_000 + "\n"),
        Loads(1),
    ),
    Case(
        "a split in no row",
        lambda f: f"{text('path,split' + chr(10) + 'a.png,train' + chr(10))(f)}:test",
        refused("no split 'test'"),
    ),
    Case("a split of some rows", text("path,split\na.png,train\nb.png,\n"), Loads(2, note="(none)")),
    Case("HTML under that name", text("<!DOCTYPE html>\n<html><body>404</body></html>\n"), refused()),
    Case("a spreadsheet under that name", text(b"PK\3\4" + bytes(range(256)) * 4), refused("UTF-8")),
    Case("JSON under that name", text('[{"path": "a.png"}]\n'), refused()),
    Case("metadata.csv in a folder of images", listed("file_name,label\na.png,x\n", "metadata.csv", **THREE), Loads(1)),
]

PARQUET = [
    Case("bytes and labels", parquet(image=[A, B], label=["x", "y"]), Loads(2, (3, 8, 8))),
    Case(
        "as the Hub writes them",
        parquet(image=[{"bytes": A, "path": "a"}, {"bytes": B, "path": None}], label=[0, 1]),
        Loads(2),
    ),
    Case("0 bytes", one("x.parquet", b""), refused("cannot be read")),
    Case("the magic alone", one("x.parquet", b"PAR1PAR1"), refused("cannot be read")),
    Case(
        "a footer of 4 gigabytes",
        one("x.parquet", b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1"),
        refused("cannot be read"),
    ),
    Case(
        "a footer of noise", one("x.parquet", b"PAR1" + bytes(range(64)) + b"\x20\0\0\0PAR1"), refused("cannot be read")
    ),
    Case("no row", parquet(image=pa.array([], pa.binary()), label=pa.array([], pa.string())), refused("no image")),
    Case("no column of images", parquet(number=[1, 2]), refused()),
    Case(
        "an image that is nothing",
        parquet(image=pa.array([A, None], pa.binary())),
        Loads(None, check=lambda d: [s.reason for s in d.skipped] == ["is empty (0 bytes)"]),
    ),
    Case("an image that is damaged", parquet(image=[A, B[:40]]), Loads(None, check=lambda d: len(d.skipped) == 1)),
    Case("labels that are fractions", parquet(image=[A, B], label=[0.5, 1.0]), refused("no class")),
    Case("labels of NaN for some", parquet(image=[A, B], label=[float("nan"), 1.0]), refused("no label")),
    Case("labels that are dates", parquet(image=[A], label=pa.array([0], pa.timestamp("s"))), refused("no class")),
    Case("labels that are lists", parquet(image=[A, B], label=[[0, 1], []]), Loads(2)),
    Case("labels that are lists of lists", parquet(image=[A, B], label=[[[0]], [[1]]]), refused("no class")),
    Case("labels that are lists of None", parquet(image=[A, B], label=[[None], [1]]), Loads(2)),
    Case("labels that are infinite", parquet(image=[A, B], label=[float("inf"), 1.0]), refused("no class")),
    Case("labels of text and None", parquet(image=[A, B], label=["x", None]), refused("no label")),
    Case(
        "two columns of one name",
        lambda f: (
            pq.write_table(
                pa.table([pa.array([A]), pa.array(["x"]), pa.array(["y"])], names=["image", "label", "label"]),
                f / "x.parquet",
            )
            or f / "x.parquet"
        ),
        refused(),
    ),
    Case("paths with a null byte", parquet(image=["a\0b.png"]), refused()),
    Case("paths of files that are not there", parquet(path=["a.png"]), refused("not found")),
    Case(
        "names of classes that are no JSON",
        lambda f: (
            pq.write_table(
                pa.table({"image": [A], "label": [0]}).replace_schema_metadata({"huggingface": "{not json"}),
                f / "x.parquet",
            )
            or f / "x.parquet"
        ),
        Loads(1),
    ),
    Case(
        "names of classes that are a number",
        lambda f: (
            pq.write_table(
                pa.table({"image": [A], "label": [0]}).replace_schema_metadata({"huggingface": '{"info": 3}'}),
                f / "x.parquet",
            )
            or f / "x.parquet"
        ),
        Loads(1),
    ),
    Case(
        "names of classes deep in lists",
        lambda f: (
            pq.write_table(
                pa.table({"image": [A], "label": [0]}).replace_schema_metadata({"huggingface": "[" * 50_000}),
                f / "x.parquet",
            )
            or f / "x.parquet"
        ),
        Loads(1),
    ),
    Case(
        "a folder of two kinds",
        lambda f: parquet("train.parquet", image=[A])(f) and parquet("test.parquet", img=[B])(f) and f,
        refused("different columns"),
    ),
    Case(
        "a folder with a damaged part",
        lambda f: parquet("train.parquet", image=[A])(f) and put(f, "test.parquet", b"PAR1") and f,
        refused("test.parquet"),
    ),
    Case(
        "a folder with a pipe",
        lambda f: parquet("train.parquet", image=[A])(f) and pipe(f, "test.parquet") and f,
        skipped(1, test="not a regular file"),
    ),
]

CASES = cases("csv", *CSV) + cases("parquet", *PARQUET)
