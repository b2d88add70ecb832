"""Files osteon writes itself and reads again: settings, lists of ids, checkpoints, tensors, metrics, locks."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

from osteon.core.options import parse_settings
from osteon.core.run import RunFolder
from osteon.core.tensorfile import flatten_state, read_tensors, unflatten_state, write_tensors
from osteon.recipes import read_recipes
from osteon.verbs._model import load_trained
from osteon.verbs._pretrain_settings import GIVEN, merge_config
from tests.malformed.kit import READS_NULL, Case, Loads, cases, one, picture, pipe, put, refused


def read_config(path: Any) -> dict[str, Any]:
    """A file of settings as ``osteon pretrain --config`` reads it."""
    return merge_config(path, **dict.fromkeys(GIVEN), settings={})


# -- lists of ids ------------------------------------------------------------------------------------------------------


def three(ids: bytes | str, name: str = "ids.csv") -> Any:
    """A folder of three images, and a list of ids beside it: SOURCE@ids.csv."""

    def make(folder: Path) -> str:
        for key in "abc":
            put(folder / "data", f"{key}.png", picture(ord(key)))
        return f"{folder / 'data'}@{put(folder, name, ids)}"

    return make


IDS = [
    Case("two of three", three("id\na.png\nb.png\n"), Loads(2)),
    Case(
        "with scores, best first",
        three("id,score\nc.png,9\na.png,1\n"),
        Loads(2, check=lambda d: d.ids == ["a.png", "c.png"]),
    ),
    Case("0 bytes", three(""), refused("no column 'id'")),
    Case("a header alone", three("id\n"), refused("empty")),
    Case("another header", three("name\na.png\n"), refused("no column 'id'")),
    Case("twice the same", three("id\na.png\na.png\n"), refused("occurs twice")),
    Case("one that is not there", three("id\na.png\nd.png\n"), refused("do not occur", "d.png")),
    Case("a byte-order mark", three(b"\xef\xbb\xbfid\na.png\n"), Loads(1)),
    Case("UTF-16", three("id\na.png\n".encode("utf-16")), refused("cannot be read")),
    Case("null bytes", three(b"id\na.png\0\n"), refused("do not occur" if READS_NULL else "cannot be read")),
    Case("line ends of CR", three("id\ra.png\rb.png\r"), Loads(2)),
    Case("line ends of CR LF", three("id\r\na.png\r\nb.png\r\n"), Loads(2)),
    Case("a short row", three("score,id\n1\n2,a.png\n"), refused("row")),
    Case("an open quote", three('id\n"a.png\nb.png\n'), refused()),
    Case("a cell of 200,000 letters", three("id\n" + "x" * 200_000 + "\n"), refused()),
    Case("empty ids", three('id,score\n"",1\n'), refused()),
    Case("plain text", three("a.png\nb.png\n", "ids.txt"), Loads(2)),
    Case("plain text with blank lines", three("a.png\n\n\nb.png\n", "ids.txt"), Loads(2)),
    Case("plain text of nothing", three("\n\n", "ids.txt"), refused("empty")),
    Case("a list that is not there", lambda f: three("")(f).replace("ids.csv", "jds.csv"), refused("cannot be read")),
    Case(
        "a folder for a list",
        lambda f: three("")(f)[:-7] + str((f / "x.csv").mkdir() or "x.csv"),
        refused("cannot be read"),
    ),
    Case("a pipe for a list", lambda f: three("")(f)[:-7] + pipe(f, "x.csv").name, refused("cannot be read")),
    Case(
        "a list of a list",
        lambda f: three("id\na.png\nb.png\n")(f) + "@" + str(put(f, "more.csv", "id\na.png\n")),
        Loads(1),
    ),
]


# -- settings ----------------------------------------------------------------------------------------------------------

YAML = (
    ("0 bytes", b""),
    ("a word", b"hello"),
    ("a list", b"- a\n- b\n"),
    ("a number", b"3"),
    ("a tab", b"a:\n\t- b\n"),
    ("an open bracket", b"a: [1, 2\n"),
    ("null bytes", b"a: \0\n"),
    ("Latin-1", "a: Gr\xfcn".encode("latin-1")),
    (
        "a Python object",
        b"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [executed]]\n",
    ),
    ("a Python name", b"a: !!python/name:os.system\n"),
    ("a tag of nobody", b"a: !mine 3\n"),
    ("two documents", b"a: 1\n---\nb: 2\n"),
    ("a key that is a list", b"? [1, 2]\n: 3\n"),
    ("an alias to nothing", b"a: *nobody\n"),
    ("itself within itself", b"&a [*a]\n"),
    ("1,000 brackets", b"a: " + b"[" * 1000),
    ("100,000 brackets", b"a: " + b"[" * 100_000),
    ("a date of month 13", b"a: 2020-13-45\n"),
    ("a merge of a number", b"<<: 3\n"),
    ("binary that is none", b"a: !!binary '?'\n"),
    ("a number that is none", b"seed: !!float ''\n"),
    ("a switch that is none", b"seed: !!bool maybe\n"),
    ("an unknown setting", b"no_such_setting: 3\n"),
)
SETTINGS = [
    Case(f"--config, {what}", one("c.yaml", data), refused(), open=lambda p: read_config(p))
    for what, data in YAML
    if what not in ("0 bytes",)
]


def run_folder(**named: bytes) -> Any:
    def make(folder: Path) -> Path:
        (folder / "run").mkdir()
        for key, data in named.items():
            stem, _, ending = key.replace("__", "/").rpartition("_")
            put(folder / "run", f"{stem}.{ending}", data)
        return folder / "run"

    return make


SETTINGS += [
    Case(
        f"config.yaml of a run, {what}",
        run_folder(config_yaml=data),
        refused("config.yaml"),
        open=lambda p: RunFolder(p).config(),
    )
    for what, data in YAML
    if what not in ("an unknown setting", "a key that is a list")
]
SETTINGS += [
    Case(f"recipes, {what}", one("r.yaml", data), refused(), open=lambda p: read_recipes(p)) for what, data in YAML
]
SETTINGS += [
    Case(f"--set {text[:30]!r}", lambda f, t=text: t, refused("--set"), open=lambda t: parse_settings([t]))
    for text in (
        "",
        "=",
        "=3",
        "abc",
        "a=[1",
        "a={",
        "a=!!python/name:os.system",
        "a=*x",
        "a=&b [*b]",
        "a=" + "[" * 50_000,
        "a=\0",
        "a=- b: c: d",
        "a=!!binary '?'",
        "a=!!timestamp x",
        "a=!!int x",
        "a=? [1]",
        "a=\ud800",
    )
]


# -- tensors and checkpoints ------------------------------------------------------------------------------------------


def checkpoint(change: Any) -> Any:
    """A good file of tensors, its bytes changed."""

    def make(folder: Path) -> Path:
        path = folder / "x.safetensors"
        write_tensors(path, {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, {"step": 3, "meta": {}})
        data = change(path.read_bytes())
        path.write_bytes(data)
        return path

    return make


def header(change: Any) -> Any:
    """A good file, its header's JSON changed."""

    def edit(data: bytes) -> bytes:
        size = struct.unpack("<Q", data[:8])[0]
        text = change(json.loads(data[8 : 8 + size]))
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return edit


def without(head: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in head.items() if k != key}


DAMAGE = (
    ("0 bytes", lambda d: b""),
    ("7 bytes", lambda d: d[:7]),
    ("cut in the header", lambda d: d[:40]),
    ("cut in the values", lambda d: d[:-5]),
    ("bytes after the end", lambda d: d + b"more"),
    ("a flipped bit in the values", lambda d: d[:-3] + bytes([d[-3] ^ 1]) + d[-2:]),
    ("a header of 2^63 bytes", lambda d: struct.pack("<Q", 2**63) + d[8:]),
    ("a header of 100 MB", lambda d: struct.pack("<Q", 10**8) + d[8:]),
    ("a pickle", lambda d: b"\x80\4cos\nsystem\n(S'touch executed'\ntR."),
    ("a zip of torch.save", lambda d: b"PK\3\4" + d),
    ("no JSON", header(lambda h: b"{not json")),
    ("a list for a header", header(lambda h: [1])),
    ("a tensor of a petabyte", header(lambda h: {**h, "a": {**h["a"], "shape": [10**15]}})),
    ("offsets beyond the end", header(lambda h: {**h, "a": {**h["a"], "data_offsets": [0, 10**12]}})),
    ("offsets backwards", header(lambda h: {**h, "a": {**h["a"], "data_offsets": [24, 0]}})),
    ("offsets that overlap", header(lambda h: {**h, "b": {**h["b"], "data_offsets": [0, 24]}})),
    ("a negative shape", header(lambda h: {**h, "a": {**h["a"], "shape": [-6]}})),
    ("another shape", header(lambda h: {**h, "a": {**h["a"], "shape": [2, 3]}})),
    ("an unknown type", header(lambda h: {**h, "a": {**h["a"], "dtype": "F7"}})),
    ("another type", header(lambda h: {**h, "a": {**h["a"], "dtype": "I32"}})),
    ("no tensor a", header(lambda h: without(h, "a"))),
    ("no metadata", header(lambda h: without(h, "__metadata__"))),
    ("metadata of another library", header(lambda h: {**h, "__metadata__": {"format": "pt"}})),
    ("a note that is no JSON", header(lambda h: {**h, "__metadata__": {"osteon": "x"}})),
    ("a note that is a list", header(lambda h: {**h, "__metadata__": {"osteon": "[]"}})),
    ("a note of brackets", header(lambda h: {**h, "__metadata__": {"osteon": "[" * 100_000}})),
    ("no checksum", header(lambda h: {**h, "__metadata__": {"osteon": '{"meta": "{}"}'}})),
    (
        "the checksum of something else",
        header(lambda h: {**h, "__metadata__": {"osteon": '{"meta": "{}", "sha256": "0"}'}}),
    ),
    ("meta that is a number", header(lambda h: {**h, "__metadata__": {"osteon": '{"meta": 3, "sha256": "0"}'}})),
)
TENSORS = [Case(what, checkpoint(change), refused("damaged"), open=read_tensors) for what, change in DAMAGE] + [
    Case("a file that is not there", lambda f: f / "x.safetensors", refused("no such file"), open=read_tensors),
    Case("a folder", lambda f: f, refused("no such file"), open=read_tensors),
    Case("a pipe", lambda f: pipe(f, "x.safetensors"), refused("no such file"), open=read_tensors),
]


def skeleton(change: Any) -> Any:
    """The state of an optimiser whose description was changed."""

    def make(folder: Path) -> Any:
        tensors, tree = flatten_state({"a": torch.ones(2), "b": (1, 2.5, float("nan")), 3: [None, True]})
        return tensors, change(tree)

    return make


STATE = [
    Case(what, skeleton(change), refused(), open=lambda s: unflatten_state(*s))
    for what, change in (
        ("an unknown kind", lambda t: {"~": "code"}),
        ("no kind", lambda t: {"a": 1}),
        ("a tensor that is not there", lambda t: {"~": "tensor", "name": "z"}),
        ("a tensor without a name", lambda t: {"~": "tensor"}),
        ("a stride of another length", lambda t: {"~": "tensor", "name": "state.a", "stride": [1, 2, 3]}),
        ("a negative stride", lambda t: {"~": "tensor", "name": "state.a", "stride": [-1]}),
        ("a stride of a petabyte", lambda t: {"~": "tensor", "name": "state.a", "stride": [10**15]}),
        ("a stride of words", lambda t: {"~": "tensor", "name": "state.a", "stride": "abc"}),
        ("a float that is none", lambda t: {"~": "float", "value": "x"}),
        ("items that are a number", lambda t: {"~": "tuple", "items": 3}),
        ("pairs of three", lambda t: {"~": "dict", "items": [[1, 2, 3]]}),
        ("a key that is a list", lambda t: {"~": "dict", "items": [[[1], 2]]}),
    )
]


def damaged_run(change: Any) -> Any:
    def make(folder: Path) -> Path:
        run = RunFolder(folder / "run")
        run.create_or_resume({"a": 1})
        for step in (1, 2):
            run.save_checkpoint(step, {"w": torch.full((3,), float(step))}, {})
        newest = folder / "run" / "checkpoints" / "step_00000002.safetensors"
        change(newest)
        return folder / "run"

    return make


def latest(path: Path) -> Any:
    run = RunFolder(path)
    found = run.latest_checkpoint()
    assert found is not None and found[0] == 1 and len(run.warnings) == 1 and "step_00000002" in run.warnings[0], (
        run.warnings
    )
    return found


def note(head: Any) -> Any:
    return lambda p: write_tensors(p, {"w": torch.ones(3)}, head)


RUNS = [
    Case(f"the newest checkpoint {what}: the one before", damaged_run(change), Loads(), open=latest)
    for what, change in (
        ("is empty", lambda p: p.write_bytes(b"")),
        ("is cut short", lambda p: p.write_bytes(p.read_bytes()[:-4])),
        ("has a flipped bit", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\xff")),
        ("has no step", note({"meta": {}})),
        ("has a step that is a word", note({"step": "x", "meta": {}})),
        ("has no meta", note({"step": 2})),
        ("has a meta that is a list", note({"step": 2, "meta": []})),
        ("has a step that is a list", note({"step": [2], "meta": {}})),
    )
]
RUNS += [
    Case(
        "a model without a description",
        lambda f: (
            write_tensors(f / "run" / "model.safetensors", {"w": torch.ones(2)}, {})
            or put(f / "run", "config.yaml", "a: 1\n").parent
        ),
        refused(),
        open=load_trained,
    ),
    Case(
        "a model of an unknown backbone",
        lambda f: (
            write_tensors(
                f / "run" / "model.safetensors",
                {"w": torch.ones(2)},
                {"backbone": {"name": "nobody", "options": {}, "channels": 3, "size": 8}, "data": {}},
            )
            or put(f / "run", "config.yaml", "a: 1\n").parent
        ),
        refused(),
        open=load_trained,
    ),
    Case(
        "a model whose description is a list",
        lambda f: (
            write_tensors(f / "run" / "model.safetensors", {"w": torch.ones(2)}, {"backbone": [1], "data": 3})
            or put(f / "run", "config.yaml", "a: 1\n").parent
        ),
        refused(),
        open=load_trained,
    ),
    Case("a run without a model", run_folder(config_yaml=b"a: 1\n"), refused(), open=load_trained),
    Case("a folder that is no run", lambda f: f, refused(), open=load_trained),
    Case(
        "metrics of noise: the rows that are whole",
        run_folder(metrics_jsonl=b'{"step": 1}\n\xff\xfe\n[1]\n3\n{"step": 2}\n{"st'),
        Loads(check=lambda rows: [row["step"] for row in rows] == [1, 2]),
        open=lambda p: RunFolder(p).metrics(),
    ),
    Case(
        "metrics of 100,000 brackets",
        run_folder(metrics_jsonl=b"[" * 100_000 + b'\n{"step": 1}\n'),
        Loads(check=lambda rows: len(rows) == 1),
        open=lambda p: RunFolder(p).metrics(),
    ),
]

CASES = (
    cases("ids", *IDS)
    + cases("settings", *SETTINGS)
    + cases("tensors", *TENSORS)
    + cases("state", *STATE)
    + cases("run", *RUNS)
)
