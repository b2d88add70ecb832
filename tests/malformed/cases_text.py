"""Texts: encodings, empty files, lines of JSON that are none, tokenizers that are too large or too small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.malformed.kit import Case, Loads, cases, files, listed, one, pipe, put, refused, skipped

LINES = "\n".join(f"the {w} sat on the mat and looked at me" for w in ("cat", "dog", "hen", "cow") * 30)
ROW = '{"text": "a cat sat on the mat", "label": "x"}\n'


def many(make: Any) -> Any:
    return lambda folder: (
        [put(folder / "data", f"{w}/{i}.txt", f"{w} number {i} of all") for w in "ab" for i in range(3)]
        and make(folder / "data")
        and folder / "data"
    )


TXT = [
    Case("0 bytes", one("x.txt", b""), refused("empty")),
    Case("blanks only", one("x.txt", b" \n\t\n\r\n  "), refused("empty")),
    Case("one letter", one("x.txt", b"a"), Loads()),
    Case("one line without an end", one("x.txt", b"a cat sat on the mat"), Loads()),
    Case("a byte-order mark", one("x.txt", b"\xef\xbb\xbf" + LINES.encode()), Loads()),
    Case("a byte-order mark alone", one("x.txt", b"\xef\xbb\xbf"), refused("empty")),
    Case("UTF-16", one("x.txt", LINES.encode("utf-16")), refused("UTF-8", "0xff")),
    Case("Latin-1 in the second line", one("x.txt", "good\nGr\xfcn\n".encode("latin-1")), refused("0xfc", "line 2")),
    Case("cut within a letter", one("x.txt", LINES.encode() + "ü".encode()[:1]), refused("UTF-8")),
    Case("surrogates", one("x.txt", b"a \xed\xa0\x80 b"), refused("UTF-8")),
    Case("line ends of CR", one("x.txt", LINES.replace("\n", "\r").encode()), Loads()),
    Case("line ends of CR LF", one("x.txt", LINES.replace("\n", "\r\n").encode()), Loads()),
    Case("null bytes", one("x.txt", bytes(500)), Loads()),
    Case("control characters", one("x.txt", bytes(range(32)) * 20), Loads()),
    Case("one line of 200,000 letters", one("x.txt", b"word " * 40_000), Loads()),
    Case("one word of 300,000 letters", one("x.txt", b"x" * 300_000), Loads()),
    Case("letters of every alphabet", one("x.txt", "".join(map(chr, range(0x20, 0x3000))).encode()), Loads()),
    Case("emoji and joined letters", one("x.txt", ("👩‍👩‍👧‍👦 e\u0301 \u202e" * 50).encode()), Loads()),
    Case("a program", one("x.txt", b"\x7fELF\2\1\1" + bytes(range(256))), refused("UTF-8")),
    Case("a special token in the text", one("x.txt", b"<pad> <mask> <unk> and words <pad>" * 30), Loads()),
    Case("a window of 1", one("x.txt", LINES), refused("4 or more"), options={"window": 1}),
    Case("a window of minus 1", one("x.txt", LINES), refused("window"), options={"window": -1}),
    Case("a window of a million million", one("x.txt", LINES), refused("window"), options={"window": 10**12}),
    Case("a window that is a word", one("x.txt", LINES), refused("window"), options={"window": "wide"}),
    Case("a vocabulary of 0", one("x.txt", LINES), refused("vocabulary"), options={"vocabulary": 0}),
    Case("a vocabulary that is a word", one("x.txt", LINES), refused("vocabulary"), options={"vocabulary": "big"}),
    Case("an unknown tokenizer", one("x.txt", LINES), refused("tokenizer"), options={"tokenizer": "nothing"}),
    Case("unknown documents", one("x.txt", LINES), refused("documents"), options={"documents": "pages"}),
]

FOLDERS = [
    Case("an empty file among others", many(lambda d: put(d, "a/9.txt", b"")), skipped(6, **{"9": "empty"})),
    Case("one that is no UTF-8", many(lambda d: put(d, "a/9.txt", b"\xff\xfe\xfd")), skipped(6, **{"9": "UTF-8"})),
    Case("a pipe among others", many(lambda d: pipe(d, "a/9.txt")), skipped(6, **{"9": "regular"})),
    Case(
        "a link to nothing",
        many(lambda d: (d / "a" / "9.txt").symlink_to("x") or True),
        skipped(6, **{"9": "cannot be read"}),
    ),
    Case("only empty ones", files(a_txt=b"", b_txt=b""), refused("No readable text")),
    Case("one class", files(a__1_txt=b"one text", a__2_txt=b"two texts"), Loads(2, note="one class")),
    Case(
        "a pipe among .jsonl",
        lambda f: put(f, "a.jsonl", ROW * 9) and pipe(f, "b.jsonl") and f,
        skipped(9, b="regular"),
    ),
]

JSONL = [
    Case("rows", one("x.jsonl", ROW * 5), Loads(5)),
    Case("0 bytes", one("x.jsonl", b""), refused("no row")),
    Case("blank lines between", one("x.jsonl", ROW + "\n\n" + ROW), Loads(2)),
    Case("a line cut short", one("x.jsonl", ROW + ROW[:20]), refused("line 2", "not JSON")),
    Case("a list", one("x.jsonl", "[1, 2]\n"), refused("no field 'text'")),
    Case("a number", one("x.jsonl", "3\n"), refused("no field 'text'")),
    Case("no text", one("x.jsonl", '{"label": "x"}\n'), refused("no field 'text'")),
    Case("text that is a number", one("x.jsonl", '{"text": 3}\n'), refused("no field 'text'")),
    Case("text that is nothing", one("x.jsonl", '{"text": null}\n'), refused("no field 'text'")),
    Case(
        "text that is empty, in one",
        one("x.jsonl", '{"text": ""}\n' + ROW * 3),
        Loads(None, check=lambda d: len(d) == 3 and d.skipped[0].reason == "is empty"),
        options={"max_skipped": 1.0},
    ),
    Case("half a surrogate", one("x.jsonl", '{"text": "a \\ud800 b", "label": "\\udfff"}\n' * 3), Loads(3)),
    Case("half a surrogate in an id", one("x.jsonl", '{"text": "a b", "id": "\\ud800"}\n{"text": "c"}\n'), Loads(2)),
    Case(
        "half a surrogate in a group", one("x.jsonl", '{"text": "a b", "group": "\\ud800"}\n{"text": "c"}\n'), Loads(2)
    ),
    Case(
        "labels of every kind",
        one("x.jsonl", "".join(json.dumps({"text": "a b", "label": v}) + "\n" for v in (1, 1.5, True, "x"))),
        Loads(4),
    ),
    Case("labels that are objects", one("x.jsonl", '{"text": "a", "label": {"x": [1]}}\n' * 2), Loads(2)),
    Case("labels that are lists of lists", one("x.jsonl", '{"text": "a", "label": [[1], [2]]}\n' * 2), Loads(2)),
    Case("labels of NaN", one("x.jsonl", '{"text": "a", "label": NaN}\n' * 2), Loads(2)),
    Case("a label of 10^5000", one("x.jsonl", '{"text": "a", "label": 1' + "0" * 5000 + "}\n"), refused()),
    Case("a label for some", one("x.jsonl", ROW + '{"text": "a"}\n'), refused("no label")),
    Case("keys twice: the last one", one("x.jsonl", '{"text": "a", "text": "b"}\n'), Loads(1)),
    Case("100,000 brackets", one("x.jsonl", '{"text": ' + "[" * 100_000 + "\n"), refused("JSON")),
    Case(
        "the same id twice",
        one("x.jsonl", '{"text": "a", "id": "k"}\n{"text": "b", "id": "k"}\n'),
        Loads(2, check=lambda d: d.ids == ["k", "k#2"]),
    ),
    Case("an id that is a list", one("x.jsonl", '{"text": "a", "id": [1]}\n'), Loads(1)),
    Case("a split that is nothing", one("x.jsonl", '{"text": "a", "split": null}\n{"text": "b"}\n'), Loads(2)),
    Case("an id with a newline", one("x.jsonl", '{"text": "a", "id": "x\\ny"}\n'), Loads(1)),
    Case("a byte-order mark", one("x.jsonl", b"\xef\xbb\xbf" + ROW.encode()), Loads(1)),
    Case("line ends of CR", one("x.jsonl", ROW.replace("\n", "\r") * 2), Loads(2)),
    Case("a line separator within a text", one("x.jsonl", '{"text": "a\u2028b"}\n'), Loads(1)),
    Case(
        "the split of a file",
        lambda f: put(f, "train.jsonl", ROW * 3) and put(f, "test.jsonl", ROW * 2) and f,
        Loads(5, check=lambda d: sorted(set(d.split)) == ["test", "train"]),
    ),
]

CSV = [
    Case("text and label", listed('text,label\n"a, b",x\n"c\nd",y\n'), Loads(2)),
    Case("a header alone", listed("text,label\n"), refused("no rows")),
    Case("a ragged row", listed("text,label\na,x\nb\n"), refused("cells")),
    Case("an empty text", listed("text,label\n,x\nb,y\n"), skipped(1, **{"list.csv:2": "empty"})),
    Case("an open quote", listed('text,label\n"a,x\nb,y\n'), refused("cannot be read")),
    Case("a text column twice", listed("text,text\na,b\n"), refused("twice")),
    Case("Latin-1", listed("text,label\nGr\xfcn,x\n".encode("latin-1")), refused("UTF-8")),
    Case("a cell of 200,000 letters", listed("text\n" + "x" * 200_000 + "\n"), refused("field larger")),
]


def latin_pair(folder: Path) -> Path:
    put(folder, "a.txt", "good text here")
    put(folder, "b.txt", "schön".encode("latin-1"))
    return folder


CASES = (
    cases(
        "text",
        *TXT,
        *FOLDERS,
        Case("two files of two encodings", latin_pair, skipped(1, b="UTF-8"), options={"documents": "file"}),
    )
    + cases("jsonl", *JSONL)
    + cases("text csv", *CSV)
)
