"""Loading: data sets of growing size, and JPEG files to pairs of views against the loaders of others; a part of
``make bench``. Run alone, it writes docs/evidence/loading.md: ``python -m benchmarks.loading``.

``OSTEON_PEERS`` names the Python of an environment that holds torch, torchvision, lightly, stable-pretraining and
solo-learn (its repository in PYTHONPATH: the package on PyPI lacks its loaders); without it they are left out.
``--most N`` stops at N rows, ``--no-train`` leaves out training, ``--only WORD`` measures the sections with that word
in their titles and leaves the others of the page as they are.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZES = (10_000, 100_000, 1_000_000)
#: Files the rows of a manifest repeat, and their side in pixels: what grows is the data set, not its pictures.
FILES, SIDE = 100, 8
#: Photographs of the race: number, sides, images a batch, batches a turn; of osteon, which is quicker, ten times as
#: many, so that turns are about as long.
PHOTOS, WIDE, BATCH, BATCHES, LONGER = 64, (500, 375), 16, 4, 10
ROUNDS = 3
PEERS = ("torchvision", "lightly", "solo-learn", "stable-pretraining")

#: Opens a source so many times, then reads batches of it, and says what both took. VmHWM is the most memory since it
#: was set back.
CHILD = """
import statistics, sys, time
from pathlib import Path
import osteon.data.source, torch
from osteon.data import Loader, open_source
from osteon.data.source import list_source
torch.set_num_threads(1)
source, cache, small, rounds = *sys.argv[1:4], int(sys.argv[4])
open_source(small, cache=False)  # imports what reading needs
def memory(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) / 1024
def spent(work):
    begun = time.process_time()
    work()
    return time.process_time() - begun
def peak():
    most = memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return most
peak()
before, held = memory("RssAnon"), []
opened = spent(lambda: held.append(open_source(source, cache=cache)))
most, kept, data = peak(), memory("RssAnon") - before, held[0]
times = [spent(lambda: open_source(source, cache=cache)) for _ in range(rounds)] or [0]
listed = [spent(lambda: list_source(source)) for _ in range(rounds)] or [0]
peak()
def read():
    for _ in Loader(data, 256, 0).iterate(0, 200): pass
turns = [spent(read) for _ in range(rounds)] or [0]
print(len(data), opened, most, kept, *map(statistics.median, (times, listed, turns)), peak())
"""


def cpu_of(command: list[str], **options: str) -> list[float]:
    """The numbers a program prints last."""
    path = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path)), **options}
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    return [float(word) for word in made.stdout.strip().splitlines()[-1].split()] if made.stdout.strip() else []


def small_files(folder: Path) -> list[Path]:
    """Little pictures of noise."""
    rng, made = np.random.default_rng(0), []
    for i in range(FILES):
        made.append(folder / f"{i:03d}.bmp")
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(made[-1])
    return made


def as_csv(folder: Path, files: list[Path], count: int) -> Path:
    """A manifest with path, label and group."""
    path = folder / f"{count}.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group"])
        table.writerows((files[i % FILES].name, i % 10, f"g{i // 5}") for i in range(count))
    return path


def as_parquet(folder: Path, files: list[Path], count: int) -> Path:
    """The same as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{count}.parquet"
    pq.write_table(pa.table({"path": [files[i % FILES].name for i in range(count)],
                             "label": [i % 10 for i in range(count)], "group": [f"g{i // 5}" for i in range(count)]}),
                   path)
    return path


def as_tars(folder: Path, files: list[Path], count: int) -> Path:
    """The same as shards of 10,000 samples, a picture and its class each."""
    made = folder / f"{count}"
    made.mkdir()
    data = [file.read_bytes() for file in files]
    for shard in range(-(-count // 10_000)):
        with tarfile.open(made / f"shard-{shard:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(shard * 10_000, min(count, (shard + 1) * 10_000)):
                for end, body in (("bmp", data[i % FILES]), ("cls", b"%d" % (i % 10))):
                    entry = tarfile.TarInfo(f"{i:07d}.{end}")
                    entry.size = len(body)
                    tar.addfile(entry, io.BytesIO(body))
    return made


def growing(most: int = SIZES[-1]) -> list[str]:
    """Opening and reading data sets of growing size, each in a process of its own: listed; opened for the first time
    (every sample read once: all are alike, so that what the first becomes all become) and again from the cache; then
    200 batches of 256 in the order of training. CPU seconds, the peak of all memory of the process, and what it kept of
    its own (the cache is mapped from its file). Samples are of 8 x 8 pixels, so that what is measured is the handling
    and not the decoding."""
    lines = [f"{'':10}{'samples':>10} | {'open, new':>9} {'peak':>8} | {'list':>6} {'open, cached':>13} {'peak':>8} "
             f"{'kept':>7} | {'a batch':>8} {'peak':>8}"]
    for name, write, sizes in (("csv", as_csv, SIZES), ("parquet", as_parquet, SIZES), ("tar shards", as_tars, SIZES)):
        for count in sizes:
            if count > most or (name != "csv" and count > min(most, 100_000)):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                small = str(as_csv(folder, small_files(folder), 10))
                command = [sys.executable, "-c", CHILD, str(write(folder, small_files(folder), count)),
                           str(folder / "cache"), small]
                new = cpu_of([*command, "0"])
                _, _, peak, kept, again, listed, read, reading = cpu_of([*command, str(ROUNDS)])
            lines.append(f"{name:10}{count:10,} | {new[1]:7.1f} s {new[2]:5.0f} MB | {listed:4.1f} s {again:11.1f} s "
                         f"{peak:5.0f} MB {kept:4.0f} MB | {5000 * read:5.0f} us {reading:5.0f} MB")
    return [*lines, "wanted: a manifest of a million rows in under 60 s and 2,000 MB"]


def photographs(folder: Path, count: int = PHOTOS) -> Path:
    """JPEG files with the slopes, edges and grain of photographs, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        values = np.asarray(coarse.resize(WIDE, Image.Resampling.BICUBIC)) + rng.normal(0, 3, (WIDE[1], WIDE[0], 1))
        path = folder / "photos" / "ab"[i % 2] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=85)
    return folder / "photos"


def _program(name: str) -> list[str]:
    """The interpreter and the file that measure one library."""
    python = sys.executable if name in ("osteon", "torchvision") else os.environ["OSTEON_PEERS"]
    return [python, str(ROOT / "benchmarks" / "_peer_loading.py")]


def _there(name: str, folder: Path) -> str:
    """Why a peer is not measured; empty where it is."""
    if name not in ("osteon", "torchvision") and not os.environ.get("OSTEON_PEERS"):
        return "not measured: OSTEON_PEERS does not name the Python of an environment that has it"
    try:
        cpu_of([*_program(name), f"{name}?", str(folder)])
    except subprocess.CalledProcessError as error:
        return f"not measured: {(error.stderr.strip().splitlines() or ['it fails'])[-1][:150]}"
    return ""


def pairs() -> list[str]:
    """From JPEG files of 500 x 375 to normalised pairs of 224 x 224 views of SimCLR's recipe, no model: CPU seconds of
    one process that does everything. osteon decodes once and keeps what it decoded; the first epoch and 100 epochs
    hold that cost, a later epoch does not. Turns of osteon are ten times as many batches: its first batches after
    opening cost about twice a later one, and in turns of 4 batches, on a busier machine, it was 7.5 to 8.0 times as
    fast as lightly, solo-learn and stable-pretraining in a later epoch. Sections are runs of their own."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = photographs(Path(scratch))
        names = []
        for name in ("osteon", *PEERS):
            reason = _there(name, folder)
            if reason:
                lines.append(f"{name:20} {reason}")
            else:
                names.append(name)
        times: dict[str, list[list[float]]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                batches = BATCHES * (LONGER if name == "osteon" else 1)
                times[name].append(cpu_of([*_program(name), name, str(folder), str(batches), str(BATCH)]))
    epochs = {"a later epoch": 0.0, "over 100 epochs": 0.01, "the first epoch": 1.0}
    ours = {what: [pair + share * opened / PHOTOS for pair, opened in times["osteon"]]
            for what, share in epochs.items()}
    table = [f"osteon, {what:17} {1 / statistics.median(values):7.0f} pairs a CPU second" for what, values in
             ours.items()]
    for name in names[1:]:
        theirs = [pair for pair, _ in times[name]]
        ratios = ", ".join(f"{statistics.median(q / p for p, q in zip(values, theirs, strict=True)):.1f}x {what}"
                           for what, values in ours.items())
        table.append(f"{name:25} {1 / statistics.median(theirs):7.0f} pairs a CPU second; osteon: {ratios}")
    return [*table, *lines, "wanted: 8x"]


TRAIN = """
import sys, tempfile, time
import os, torch, osteon
torch.set_num_threads(1)
folder, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def spent(steps):
    with tempfile.TemporaryDirectory() as out:
        os.environ["OSTEON_CACHE"] = out + "/cache"
        begun = time.process_time()
        osteon.pretrain(folder, objective="simclr", backbone="resnet18", steps=steps, batch_size=batch,
                        out=out + "/run", progress=False, report=False)
        return time.process_time() - begun
spent(1)  # what only the first run of a process pays: imports, kernels chosen
print((spent(1 + steps) - spent(1)) / (steps * batch))
"""


def training() -> list[str]:
    """SimCLR with a ResNet-18 at 224 pixels from the same JPEG files, the model included: a step of osteon.pretrain
    with its defaults against lightly's example (its loader, loss and head, fp32), both in batches of 16. Opening the
    folder, where osteon decodes everything once, is not among the steps."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = photographs(Path(scratch))
        reason = _there("lightly", folder)
        if reason:
            return [f"lightly: {reason}"]
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours += cpu_of([sys.executable, "-c", TRAIN, str(folder), "8", str(BATCH)])
            theirs += cpu_of([*_program("lightly"), "lightly", str(folder), "8", str(BATCH), "train"])
    ratio = statistics.median(p / q for p, q in zip(ours, theirs, strict=True))
    return [f"osteon   {1000 * statistics.median(ours):7.0f} CPU ms an image", f"lightly  "
            f"{1000 * statistics.median(theirs):7.0f} CPU ms an image", f"ratio    {ratio:7.2f} (wanted at most 0.6)"]


def main(words: list[str]) -> int:
    """Measure everything and write docs/evidence/loading.md."""
    most = int(words[words.index("--most") + 1]) if "--most" in words else SIZES[-1]
    only = words[words.index("--only") + 1].lower() if "--only" in words else ""
    command = " ".join(["python -m benchmarks.loading", *([] if only else words)])
    file = ROOT / "docs" / "evidence" / "loading.md"
    held = {part.partition("\n")[0]: part.strip() for part in file.read_text(encoding="utf-8").split("\n## ")[1:]}
    page = ["# Loading", "", f"Regenerate with `OSTEON_PEERS=... {command}` (what it names: `benchmarks/loading.py`). "
            "Medians of 3 but for what is opened anew, once; CPU seconds of one thread; work interleaved with its "
            f"peers' in one run. Python {platform.python_version()}, {platform.machine()}.", ""]
    parts: list[tuple[str, Callable[[], list[str]], str]] = [
        ("Data sets of growing size", lambda: growing(most), growing.__doc__ or ""),
        ("From JPEG files to pairs of views", pairs, pairs.__doc__ or "")]
    if "--no-train" not in words:
        parts.append(("Training from JPEG files", training, training.__doc__ or ""))
    for title, measure, what in parts:
        if only not in title.lower():
            page += [f"## {held[title]}", ""] if title in held else []
            continue
        print(f"== {title}", flush=True)
        lines = measure()
        print("\n".join(lines), flush=True)
        page += [f"## {title}", "", " ".join(what.split()), "", "```", *lines, "```", ""]
    file.write_text("\n".join(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
