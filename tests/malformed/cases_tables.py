# ruff: noqa: E501 (tables of cases)
"""Tables of rows, series over time, labelled series: odd cells, odd columns, odd options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.malformed.kit import READS_NULL, Case, Loads, cases, npy, npz, one, put, refused

RNG = np.random.default_rng(0)


def csv(*columns: str, rows: int = 24, head: str | None = None, end: str = "\n", sep: str = ",") -> str:
    """A table whose columns are ``name=kind``: number, word, constant, empty, row or any text with {i}."""
    kinds = {
        "number": lambda i: f"{RNG.normal():.4f}",
        "word": lambda i: "abc"[i % 3],
        "label": lambda i: "xy"[i % 2],
        "constant": lambda i: "7",
        "empty": lambda i: "",
        "row": str,
        "mixed": lambda i: str(i) if i % 2 else "cat",
    }
    pairs = [column.split("=", 1) for column in columns]
    lines = [sep.join(name for name, _ in pairs) if head is None else head]
    lines += [sep.join(kinds[kind](i) if kind in kinds else kind.format(i=i) for _, kind in pairs) for i in range(rows)]
    return end.join(lines) + end


PLAIN = ("a=number", "b=number", "c=word", "label=label")
TABLE = {"modality": "table"}


def table(what: str, text: bytes | str, rule: Any, name: str = "t.csv", **options: Any) -> Case:
    return Case(what, one(name, text), rule, options={**TABLE, **options})


TABLES = [
    table("as it should be", csv(*PLAIN), Loads(24)),
    table("0 bytes", "", refused("empty")),
    table("a header alone", "a,b,label\n", refused("no rows")),
    table("one row", csv(*PLAIN, rows=1), refused("constant")),
    table("two rows", csv(*PLAIN, rows=2), Loads(2)),
    table("one column", csv("a=number"), Loads(24)),
    table("only a label", csv("label=label"), refused()),
    table("numbers for names", "1,2,3\n4,5,6\n", refused("names of the columns")),
    table("two columns of one name", csv("a=number", "a=number", "label=label"), refused("'a'")),
    table("a column without a name", csv("a=number", "=number", "label=label"), Loads(24)),
    table("no column has a name", csv("=number", "=word"), Loads(24)),
    table("a constant column", csv(*PLAIN, "k=constant"), Loads(24)),
    table("only constant columns", csv("a=constant", "b=constant", "label=label"), refused("constant")),
    table("a column of nothing", csv(*PLAIN, "k=empty"), Loads(24)),
    table("only columns of nothing", csv("a=empty", "b=empty"), refused()),
    table("numbers and words in a column", csv(*PLAIN, "m=mixed"), refused("'cat' is no number")),
    table("a word a row", csv(*PLAIN, "m=word{i}"), Loads(24)),
    table("huge whole numbers", csv(*PLAIN, "m=1{i}00000000000000000000000000000000000000000000"), Loads(24)),
    table("numbers of 5,000 digits", csv(*PLAIN, "m=" + "9" * 5000), Loads(24)),
    table("1e400", csv(*PLAIN, "m={i}e400"), Loads(24)),
    table("infinity", csv(*PLAIN, "m=inf"), Loads(24)),
    table("one infinity", csv(*PLAIN, "m={i}").replace(",23\n", ",inf\n"), refused("inf")),
    table("1e308 and -1e308", csv(*PLAIN, "m={i}e307").replace(",23e307", ",-1e308"), Loads(24)),
    table("1e-320", csv(*PLAIN, "m={i}e-320"), Loads(24)),
    table("NaN", csv(*PLAIN, "m=NaN"), Loads(24)),
    table("every word for nothing", csv("a=number", "b=number", "m=NA").replace(",NA\n", ",null\n", 1), Loads(24)),
    table("underscores in numbers", csv(*PLAIN, "m={i}_000"), Loads(24)),
    table("hexadecimal", csv(*PLAIN, "m=0x{i}"), Loads(24)),
    table("digits of other alphabets", csv(*PLAIN, "m=٣"), Loads(24)),
    table("comma decimals", csv(*PLAIN, 'm="3,{i}"'), Loads(24)),
    table("dates", csv(*PLAIN, "d=2020-01-1{i}"), Loads(24)),
    table("dates of month 13", csv(*PLAIN, "d=2020-13-{i}"), Loads(24)),
    table("dates of the year 99999", csv(*PLAIN, "d=99999-01-01"), Loads(24)),
    table("semicolons", csv(*PLAIN, sep=";"), Loads(24)),
    table("pipes", csv(*PLAIN, sep="|"), Loads(24)),
    table("tabs in .tsv", csv(*PLAIN, sep="\t"), Loads(24), "t.tsv"),
    table("CR", csv(*PLAIN, end="\r"), Loads(24)),
    table("CR LF", csv(*PLAIN, end="\r\n"), Loads(24)),
    table("a byte-order mark", b"\xef\xbb\xbf" + csv(*PLAIN).encode(), Loads(24)),
    table("UTF-16", csv(*PLAIN).encode("utf-16"), refused("UTF-8")),
    table("Latin-1", csv("gr\xf6sse=number", "b=number").encode("latin-1"), refused("UTF-8")),
    table("null bytes", csv(*PLAIN).replace("x", "\0"), Loads(24) if READS_NULL else refused("cannot be read")),
    table("a ragged row", csv(*PLAIN) + "1,2\n", refused("cells")),
    table("an open quote", csv(*PLAIN) + '"1,2,3,4\n', refused("cannot be read")),
    table("a newline in a cell", csv(*PLAIN) + '1,2,"x\ny",x\n', Loads(25)),
    table("a label for some", csv(*PLAIN) + "1,2,a,\n", refused("label")),
    table("one class", csv("a=number", "b=number", "label=constant"), Loads(24, note="one class")),
    table("a class a row", csv("a=number", "b=number", "label=row"), refused("regression")),
    table("a label that is no column", csv(*PLAIN), refused("nothing"), label="nothing"),
    table("a label that is a number", csv(*PLAIN), refused(), label=3),
    table("every column left out", csv(*PLAIN), refused(), drop="a,b,c"),
    table("a column left out that is not there", csv(*PLAIN), refused("zz"), drop="zz"),
    table("kinds of columns that are none", csv(*PLAIN), refused(), columns="a=colour"),
    table("minus 4 bins", csv(*PLAIN), refused("bins"), bins=-4),
    table("a word for bins", csv(*PLAIN), refused("bins"), bins="x"),
    table("a thousand million bins", csv(*PLAIN), refused("bins"), bins=10**9),
    table("300 columns", csv(*(f"c{i}=number" for i in range(300)), "label=label"), Loads(24)),
    table("a script tag for a name", csv("<script>=number", "b=number", "label=label"), Loads(24)),
    table("a name of 5,000 letters", csv("x" * 5000 + "=number", "b=number"), Loads(24)),
    table("0 bytes of parquet", b"", refused(), "t.parquet"),
    table("noise for parquet", b"PAR1" + bytes(99) + b"PAR1", refused("cannot be read"), "t.parquet"),
]


def parquet(**columns: Any) -> Any:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "t.parquet")
        return folder / "t.parquet"

    return make


TABLES += [
    Case(f"parquet of {what}", parquet(a=list(range(12)), **columns), rule, options=TABLE)
    for what, columns, rule in (
        ("nothing else", {}, Loads(12)),
        ("lists", {"m": [[1]] * 12}, Loads(12)),
        ("bytes", {"m": [b"x"] * 12}, Loads(12)),
        ("dates", {"m": pa.array(range(12), pa.timestamp("s"))}, Loads(12)),
        ("decimals", {"m": pa.array([1] * 12, pa.decimal128(9, 2))}, Loads(12)),
        ("durations", {"m": pa.array(range(12), pa.duration("s"))}, Loads(12)),
        ("only None", {"m": pa.nulls(12)}, Loads(12)),
        ("booleans", {"m": [True, None] * 6}, Loads(12)),
        ("a dictionary", {"m": pa.array(["x", "y"] * 6).dictionary_encode()}, Loads(12)),
        ("dates beyond the calendar", {"m": pa.array([2**62] * 12, pa.timestamp("us"))}, refused()),
    )
]

# -- series -------------------------------------------------------------------------------------------------------------

SERIES = {"modality": "series"}


def over_time(rows: int = 300, cell: Any = lambda i: f"{np.sin(i / 9):.4f}", time: Any = lambda i: str(i)) -> str:
    return "time,a,b\n" + "".join(f"{time(i)},{cell(i)},{RNG.normal():.3f}\n" for i in range(rows))


def series(what: str, text: Any, rule: Any, name: str = "s.csv", **options: Any) -> Case:
    return Case(what, one(name, text), rule, options={**SERIES, **options})


TS = "@problemName x\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"
OVER_TIME = [
    series("as it should be", over_time(), Loads()),
    Case(
        "parquet of odd nanoseconds",
        parquet(time=pa.array(np.arange(40) * 10**9 + 1, pa.timestamp("ns")), x=np.arange(40.0)),
        Loads(),
        options=SERIES,
    ),
    series("0 bytes", "", refused("empty")),
    series("a header alone", "time,a,b\n", refused()),
    series("one step", over_time(1), refused()),
    series("three steps", over_time(3), refused()),
    series("only times", "time\n1\n2\n3\n", refused()),
    series("no column of numbers", "time,a\n" + "".join(f"{i},w{i}\n" for i in range(50)), refused()),
    series("times that go back", over_time(time=lambda i: str(300 - i)), refused("time")),
    series("one time for all", over_time(time=lambda i: "5"), refused("time")),
    series("dates with a gap", over_time(time=lambda i: f"2020-01-01 {i // 60:02}:{i % 60:02}"), Loads()),
    series("dates of month 13", over_time(time=lambda i: f"2020-13-{i}"), Loads(note="no column of time")),
    series("cells of nothing", over_time(cell=lambda i: "" if i % 7 == 0 else "1.5"), Loads()),
    series("a column of nothing", over_time(cell=lambda i: ""), Loads(note="a left out")),
    series("a constant column", over_time(cell=lambda i: "3"), Loads()),
    series("infinity", over_time(cell=lambda i: "inf" if i == 9 else "1"), Loads(note="missing: 1 values")),
    series("1e300", over_time(cell=lambda i: f"{i}e300"), refused()),
    series("a ragged row", over_time() + "1,2\n", refused()),
    series("an open quote", over_time() + '"1,2,3\n', refused()),
    series("UTF-16", over_time().encode("utf-16"), refused()),
    series("a byte-order mark", b"\xef\xbb\xbf" + over_time().encode(), Loads()),
    series("CR LF", over_time().replace("\n", "\r\n"), Loads()),
    series("CR", over_time().replace("\n", "\r"), Loads()),
    series("null bytes", bytes(400), refused()),
    series("a window of a thousand million", over_time(), refused("window"), window=10**9),
    series("a window of minus 1", over_time(), refused("window"), window=-1),
    series("a word for a window", over_time(), refused("window"), window="x"),
    series("a hop of minus 3", over_time(), refused("hop"), hop=-3),
    series("a split of words", over_time(), refused("split"), split="a:b"),
    series("a split of zeros", over_time(), refused("split"), split="0,0,0"),
    series(
        "two columns of one name", "t,a,a\n1,2,3\n2,3,4\n" * 1 + "".join(f"{i},1,2\n" for i in range(3, 90)), Loads()
    ),
    series(".ts as it should be", TS + "1,2,3,4:a\n2,3,4,5:b\n", Loads(2), "x.ts"),
    series(".ts without data", TS[:-6], refused("@data"), "x.ts"),
    series(".ts of no series", TS, refused("no series"), "x.ts"),
    series(
        ".ts with a word in a line",
        TS + "1,2,3,4:a\n1,x,3:b\n" * 2,
        Loads(None, check=lambda d: len(d) == 2 and "no number" in d.skipped[0].reason),
        "x.ts",
    ),
    series(".ts of lengths 1 to 5", TS + "".join(",".join("1" * n) + ":a\n" for n in range(1, 6)), Loads(5), "x.ts"),
    series(".ts of nothing but missing", TS + "?,?,?:a\n1,2,3:b\n", Loads(), "x.ts"),
    series(".ts of infinities", TS + "inf,1,2:a\n1,2,3:b\n" * 3, Loads(), "x.ts"),
    series(".ts with a bare @", "@\n" + TS + "1,2:a\n", Loads(1), "x.ts"),
    series(".ts of one label missing", TS + "1,2:a\n1,2:\n", refused("no label"), "x.ts"),
    series("npz of integers", npz(series=np.arange(60).reshape(5, 12)), Loads(5), "x.npz"),
    series("npz of words", npz(series=np.array([["a"] * 3] * 5)), refused(), "x.npz"),
    series("npz of no step", npz(series=np.zeros((5, 0))), refused("empty"), "x.npz"),
    series("npz of NaN alone", npz(series=np.full((5, 12), np.nan)), refused(), "x.npz"),
    series("npz of 4 sides", npz(series=np.zeros((2, 2, 2, 2))), refused(), "x.npz"),
    series("npy of one step", npy(np.ones((5, 1))), Loads(), "x.npy"),
    series("npy of complex numbers", npy(np.ones((5, 9), complex)), refused(), "x.npy"),
    series("a length of minus 1", npz(series=np.ones((5, 12))), refused("length"), "x.npz", length=-1),
    series("a length of 10^9", npz(series=np.ones((5, 12))), refused("limit"), "x.npz", length=10**9),
    series("an unknown fit", npz(series=np.ones((5, 12))), refused("fit"), "x.npz", fit="squeeze"),
]

CASES = cases("table", *TABLES) + cases("series", *OVER_TIME)
_ = put
