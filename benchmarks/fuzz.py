"""Throw mutated files at everything that reads one: ``python -m benchmarks.fuzz [--seconds N]``.

Valid files are changed by a mutator of its own (bits, bytes, blocks, numbers at the edges of their types, words that
formats use) and opened as the verbs open them. Anything but an OsteonError is a finding, as is a case that takes longer
than its limit; findings are kept and make the command fail. Results go to docs/evidence/fuzz.md.

``--engine atheris`` drives the same targets by coverage of osteon's readers (pip install atheris; nothing else needs
it) and writes no page: the mutator is the one on record because it runs everywhere, and the same seed throws the same
files.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from PIL import Image

from osteon.core.errors import OsteonError
from osteon.core.options import parse_settings
from osteon.core.run import RunFolder
from osteon.core.tensorfile import flatten_state, read_tensors, unflatten_state, write_tensors
from osteon.data import open_source
from osteon.data.ids import read_ids
from osteon.modalities.image import strict_pillow

ROOT = Path(__file__).parents[1]
#: Seconds one case may take.
LIMIT = 10
WORDS = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"9" * 20,
    b"nan",
    b"inf",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"{",
    b"[" * 40,
    b"]",
    b":",
    b"&a [*a]",
    b"!!python/name:os.system",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"../" * 3,
    b"PK\3\4",
    b"label",
    b"path",
    b"id",
    b"(99999999999,)",
    b"'descr': '|O'",
    b"\\ud800",
    b"1e400",
    b" ",
    b"\t",
    b";",
    b"|",
)


class Late(BaseException):
    """A case took longer than its limit; no handler of ordinary errors may swallow it."""


@dataclass
class Target:
    """What is fuzzed.

    Args:
        name: as the table shows it.
        file: name of the file in its folder; its ending says how it is read.
        seeds: valid contents.
        read: opens the file.
        runs: cases tried.
        found: text of a finding -> the bytes that made it.
    """

    name: str
    file: str
    seeds: list[bytes]
    read: Callable[[Path], Any]
    runs: int = 0
    accepted: int = 0
    found: dict[str, bytes] = field(default_factory=dict)


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A few random changes to bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(9)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 2:
            out[at:at] = rng.choice(WORDS)
        elif kind == 3:
            word = rng.choice(WORDS)
            out[at : at + len(word)] = word
        elif kind == 4:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randrange(1, 60)] * rng.randrange(1, 4)
        elif kind == 6:
            del out[at:]
        elif kind == 7:
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = rng.choice(
                (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1))
            ).to_bytes(width, rng.choice(("little", "big")))
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + 20] = other[start : start + rng.randrange(60)]
    return bytes(out)


def once(target: Target, data: bytes, folder: Path) -> None:
    """Open one case; what is not an OsteonError is a finding."""
    path = folder / target.file
    path.write_bytes(data)
    target.runs += 1
    signal.alarm(LIMIT)
    try:
        target.read(path)
        target.accepted += 1
    except OsteonError:
        pass
    except (Exception, Late) as error:
        where = [f for f in traceback.extract_tb(error.__traceback__) if "/osteon/" in f.filename]
        at = f"{Path(where[-1].filename).name}, {where[-1].name}" if where else "?"
        target.found.setdefault(
            f"{type(error).__name__} in {at}: {str(error)[:90]!r}" if len(target.found) < 50 else "more", data
        )
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def little_room(more: int = 4 * 2**30) -> Iterator[None]:
    """A limit of the address space, so that a claim that is believed fails at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def opened(modality: str | None = None) -> Callable[[Path], Any]:
    """Opens a file as a source."""
    return lambda path: open_source(path, cache=False, max_skipped=1.0, modality=modality)


def archive(**arrays: Any) -> bytes:
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


def array(values: Any) -> bytes:
    memory = io.BytesIO()
    np.save(memory, values)
    return memory.getvalue()


def checkpoint(path: Path) -> Any:
    tensors, meta = read_tensors(path)
    return unflatten_state(tensors, meta["state"])


def state() -> bytes:
    """A checkpoint of an optimiser's state."""
    tensors, tree = flatten_state({"a": torch.arange(6.0).reshape(2, 3), "b": (1, 2.5, None), 3: ["x", True]})
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "x.safetensors", tensors, {"step": 3, "meta": {}, "state": tree})
        return (Path(folder) / "x.safetensors").read_bytes()


def config(path: Path) -> Any:
    from osteon.verbs._pretrain_settings import GIVEN, merge_config

    return merge_config(path, **dict.fromkeys(GIVEN), settings={}), RunFolder(path.parent).config()


def recipes(path: Path) -> Any:
    from osteon.recipes import read_recipes

    return read_recipes(path)


def targets() -> list[Target]:
    """Everything that reads a file from a user."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (4, 8, 8), dtype=np.uint8)
    rows = "a,b,c,label\n" + "".join(f"{i}.5,{i * i},{'xyz'[i % 3]},{'uv'[i % 2]}\n" for i in range(14))
    times = "time,a,b\n" + "".join(f"2020-01-{i:02},{i}.25,{i % 5}\n" for i in range(1, 29))
    yaml = (
        b"objective: simclr\nbackbone: vit_tiny\ntrain: {steps: 20, lr: 1e-3, betas: [0.9, 0.95]}\ndata: {size: 32}\n"
    )
    return [
        Target(
            "manifest csv",
            "m.csv",
            [b"path,label,split\na.png,x,train\nb.png,y,test\n", b'path;labels\n"a.png";x|y\n'],
            opened(),
        ),
        Target("table csv", "t.csv", [rows.encode(), rows.replace(",", ";").encode()], opened("table")),
        Target("series csv", "s.csv", [times.encode()], opened("series")),
        Target(
            "series .ts",
            "s.ts",
            [b"@problemName x\n@classLabel true a b\n@data\n1,2,3,4:a\n2,?,4,5:b\n"],
            opened("series"),
        ),
        Target(
            "text jsonl",
            "t.jsonl",
            [b'{"text": "a cat", "label": "x"}\n{"text": "a dog", "label": "y", "id": "k"}\n' * 2],
            opened(),
        ),
        Target("edges csv", "edges.csv", [b"source,target,weight\na,b,1\nb,c,2\n"], opened("graph")),
        Target(
            "npy", "x.npy", [array(images), array(images.astype(np.float32)), array(np.array(["a", "b"]))], opened()
        ),
        Target(
            "npz images",
            "x.npz",
            [
                archive(image=images, label=np.array([0, 1, 0, 1])),
                archive(image=images, label=np.array(list("abab")), group=np.array(list("uuvv"))),
            ],
            opened(),
        ),
        Target(
            "npz graph",
            "g.npz",
            [archive(edges=np.array([[0, 1], [1, 2]]), features=np.ones((3, 2)), labels=np.arange(3))],
            opened(),
        ),
        Target(
            "npz clouds and series",
            "p.npz",
            [
                archive(points=rng.normal(size=(3, 40, 3)), label=np.arange(3)),
                archive(series=rng.normal(size=(3, 2, 16)), label=np.arange(3)),
            ],
            opened(),
        ),
        Target("config yaml", "config.yaml", [yaml], config),
        Target(
            "recipes yaml",
            "r.yaml",
            [b"recipes:\n- simclr\n- name: m\n  objective: mae\n  settings: {lr: 0.1}\n"],
            recipes,
        ),
        Target(
            "--set",
            "set.txt",
            [b"lr=0.1", b"mean=[0, 1]", b'a={b: "c"}'],
            lambda p: parse_settings(p.read_text(encoding="utf-8", errors="surrogateescape").split("\n")),
        ),
        Target("ids csv", "ids.csv", [b"id,score\na,1\nb,2\n"], read_ids),
        Target("ids txt", "ids.txt", [b"a\nb\n"], read_ids),
        Target("checkpoint", "x.safetensors", [state()], checkpoint),
        Target(
            "ply",
            "x.ply",
            [
                b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
                b"element face 1\nproperty list uchar int v\nend_header\n0 0 0\n1 1 1\n2 1 0\n3 0 1 2\n"
            ],
            opened(),
        ),
    ]


def instrumented() -> None:
    """Have atheris see which branches of osteon a case takes; functions that were imported before it count too."""
    import atheris

    rooms = ("osteon.data", "osteon.modalities", "osteon.core", "osteon.recipes")
    for module in [m for name, m in sys.modules.items() if name.startswith(rooms)]:
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        holders = [module, *classes]
        for function in [f for h in holders for f in vars(h).values() if isinstance(f, FunctionType)]:
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)


def by_coverage(target: Target, folder: Path, seconds: float) -> None:
    """Drive a target by atheris in a child, which tells what it found through a file."""
    corpus, told = folder / "corpus", folder / "told.jsonl"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    counts = multiprocessing.get_context("fork").Array("q", 2)

    def work() -> None:
        import atheris

        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        base, accepted = target.runs, target.accepted

        def one(data: bytes) -> None:
            known = len(target.found)
            once(target, data, folder)
            counts[0], counts[1] = target.runs - base, target.accepted - accepted
            if len(target.found) > known:
                text, found = list(target.found.items())[-1]
                with told.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([text, found.hex()]) + "\n")

        limits = (f"-max_total_time={max(1, round(seconds))}", "-max_len=16384", "-timeout=0", "-rss_limit_mb=0")
        atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
        with little_room():
            atheris.Fuzz()

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    target.runs += counts[0]
    target.accepted += counts[1]
    if told.exists():
        target.found |= {text: bytes.fromhex(data) for text, data in map(json.loads, told.read_text().splitlines())}
        told.unlink()
    if child.exitcode:
        target.found.setdefault(f"the process ended with {child.exitcode}", b"")
    shutil.rmtree(corpus)


def late(*_: Any) -> None:
    """A case ran into its limit."""
    raise Late(f"longer than {LIMIT} seconds")


def main() -> int:
    """Fuzz every target for its share of the time; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, late)
    every = [t for t in targets() if asked.only in t.name]
    if asked.engine == "atheris":
        instrumented()
    with tempfile.TemporaryDirectory() as folder, strict_pillow(), warnings.catch_warnings():
        Image.new("RGB", (8, 8)).save(Path(folder) / "a.png")
        warnings.simplefilter("ignore")
        for number, target in enumerate(every):
            rng, share = random.Random(asked.seed * 1000 + number), asked.seconds / len(every)
            for seed in target.seeds:
                once(target, seed, Path(folder))
            start = time.monotonic()
            if asked.engine == "atheris":
                by_coverage(target, Path(folder), share)
                start -= share
            with little_room():
                while time.monotonic() - start < share:
                    data = mutated(rng.choice(target.seeds), target.seeds, rng)
                    once(target, data, Path(folder))
            print(
                f"{target.name}: {target.runs:,} cases, {target.accepted:,} accepted, {len(target.found)} findings",
                flush=True,
            )
            for text, data in target.found.items():
                print(
                    f"  {text}\n    {data[:300]!r} ({hashlib.sha256(data).hexdigest()[:12]}, {len(data)} bytes)",
                    flush=True,
                )
    if not asked.only and asked.engine == "own":
        report(every, asked.seconds)
    return int(any(target.found for target in every))


def report(every: list[Target], seconds: float) -> None:
    """Write docs/evidence/fuzz.md."""
    lines = [
        "# Fuzzing",
        "",
        f"`python -m benchmarks.fuzz --seconds {seconds:g}`: valid files, mutated, opened as the verbs open them, "
        f"within {LIMIT} s and 4 GB each. Driven by a mutator of its own. Anything but a clear refusal or a "
        "result is a finding.",
        "",
        "| reader | cases | accepted | refused | findings |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.name} | {t.runs:,} | {t.accepted:,} | {t.runs - t.accepted - len(t.found):,} | {len(t.found)} |"
        for t in every
    ]
    lines += [
        f"| all | {sum(t.runs for t in every):,} | {sum(t.accepted for t in every):,} | | "
        f"{sum(len(t.found) for t in every)} |",
        "",
    ]
    (ROOT / "docs" / "evidence" / "fuzz.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
