"""How cost grows: processes, the length of a run, model, batch, data and tokens; ``python -m benchmarks.scale``.

Time is CPU time of one thread, so that other load on the machine counts little; of two processes it is also what
decides how much faster they are, as long as neither waits for the other.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.sections import write_page
from benchmarks.steps import engine, images, in_child, spec
from osteon.parts.types import Step

#: A compute-bound step: (objective, backbone, side, samples a process)
BOUND = ("simclr", "resnet18", 32, 32)
STEPS = 4


def rank() -> None:
    """One process of :func:`processes`: print wall and CPU seconds of every step but the first."""
    torch.set_num_threads(1)
    objective, backbone, side, each = BOUND
    world, me = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    work = engine(objective, backbone, side, each * world, {"precision": "32"})
    batch = {k: v[me * each:(me + 1) * each] for k, v in images(each * world, side).items()}
    wall, cpu = [], []
    for i in range(STEPS):
        begun = time.perf_counter(), time.process_time()
        work.run(batch, Step(i, 100))
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    print("TIMES", json.dumps([wall[1:], cpu[1:]]))


def started(world: int) -> list[subprocess.Popen[str]]:
    """Processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = []
    for me in range(world):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world > 1:
            env |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "RANK": str(me), "LOCAL_RANK": str(me),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        out.append(subprocess.Popen([sys.executable, "-m", "benchmarks.scale", "--rank"], env=env, text=True,
                                    stdout=subprocess.PIPE))
    return out


def times(world: int) -> tuple[float, float]:
    """Median wall seconds of a step, and CPU seconds of it by the slowest process."""
    found = []
    for process in started(world):
        text = process.communicate(timeout=1200)[0]
        found.append(json.loads(next(line for line in text.splitlines() if line.startswith("TIMES"))[6:]))
    return (statistics.median(max(step) for step in zip(*(f[0] for f in found), strict=True)),
            statistics.median(max(step) for step in zip(*(f[1] for f in found), strict=True)))


def processes() -> list[str]:
    """Two gloo processes against one, one thread each: SimCLR ResNet-18 at 32 px, 32 images a process, float32.

    By CPU time: what two processes would reach on two free cores. By the clock: what they reached beside whatever else
    ran; the load says how much that was.
    """
    one, two = [], []
    for _ in range(2):
        one.append(times(1))
        two.append(times(2))
    lines = []
    for name, at in (("by CPU time", 1), ("by the clock", 0)):
        gain = statistics.median(2 * a[at] / b[at] for a, b in zip(one, two, strict=True))
        lines.append(f"{name:13} one {statistics.median(a[at] for a in one):6.2f} s a step, two "
                     f"{statistics.median(b[at] for b in two):6.2f} s a step of twice the images: {gain:.2f}x the "
                     f"images a second{' (wanted at least 1.7x)' if at else ''}")
    return [*lines, f"load of the machine: {os.getloadavg()[0]:.1f} processes for {os.cpu_count()} cores"]


def long_run() -> list[str]:
    """Does a step cost the same at the end of a run as at its beginning? 1,200 small steps through the whole loop."""
    from osteon.backbones import build_backbone
    from osteon.core import registry
    from osteon.core.run import RunFolder
    from osteon.data import open_source
    from osteon.train.loop import make_fabric, train
    from osteon.train.settings import resolve_settings

    data = open_source("digits:train", cache=False)
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=1)
    method = registry.build("objective", "byol", network, data.spec)
    settings, _ = resolve_settings({"steps": 1200, "batch_size": 32}, method.recipe, len(data), kind="tokens")
    spent, memory, mark = [], [], time.process_time()

    def watch(_step: int, _values: object) -> None:
        nonlocal mark
        now = time.process_time()
        spent.append(now - mark)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        mark = now

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        with run.lock():
            train(method, data, run, settings, fabric=make_fabric("32"), watch=watch, say=lambda _t: None,
                  log=lambda step, values: run.append_metrics({"step": step, **values}))
    parts = np.array_split(np.array(spent[20:]), 6)
    means = [1000 * float(np.mean(np.sort(p)[:int(0.9 * len(p))])) for p in parts]
    return [f"ms CPU a step in each sixth of the run: {', '.join(f'{m:.2f}' for m in means)}",
            f"last over first: {means[-1] / means[0]:.2f}; memory at most {memory[20]:.0f} MiB after 20 steps, "
            f"{memory[-1]:.0f} at the end"]


def cost(objective: str, backbone: str, side: int, batch: int, network: dict[str, object]) -> list[float]:
    """Parameters, and CPU seconds of a step (the second and third)."""
    work = engine(objective, backbone, side, batch, {"precision": "32"}, **network)
    data, spent = images(batch, side), []
    for i in range(3):
        begun = time.process_time()
        work.run(data, Step(i, 100))
        spent.append(time.process_time() - begun)
    return [float(sum(p.numel() for p in work.objective.parameters())), min(spent[1:])]


def grown() -> list[str]:
    """A step's time and the memory it adds, one thing changed at a time (MAE in float32, one process each)."""
    base = ("mae", "vit_tiny", 32, 32, {"patch": 4})
    cases = [("as a start", base),
             *((f"model {name}", ("mae", name, 32, 32, {"patch": 4})) for name in ("vit_mini", "vit_small")),
             *((f"batch {n}", ("mae", "vit_tiny", 32, n, {"patch": 4})) for n in (64, 128)),
             *((f"{(side // 4) ** 2} tokens", ("mae", "vit_tiny", side, 32, {"patch": 4})) for side in (48, 64, 96)),
             ("SimCLR ResNet-18", ("simclr", "resnet18", 32, 16, {}))]
    lines = [f"{'':18}{'parameters':>12}{'batch':>7}{'tokens':>8}{'ms CPU':>9}{'ms an image':>13}{'MiB':>7}"]
    for name, case in cases:
        (count, seconds), memory = in_child(partial(cost, *case))
        tokens = str((case[2] // 4) ** 2) if case[0] == "mae" else "-"
        lines.append(f"{name:18}{count / 1e6:10.1f} M{case[3]:7}{tokens:>8}{1000 * seconds:9.0f}"
                     f"{1000 * seconds / case[3]:13.2f}{memory:7.0f}")
    return lines


def feed(rows: int) -> list[float]:
    """CPU seconds of a batch of 64 out of so many 32 px images: from a mapped file, and of the loader by itself."""
    from osteon.data import Loader
    from osteon.data.dataset import Dataset

    def batch(images: np.ndarray) -> float:
        loader = Loader(Dataset(images, [str(i) for i in range(rows)], "zeros", str(rows), spec(32)), 64, 0)
        loader.at(0)
        begun = time.process_time()
        for i in range(200):
            loader.at(i)
        return (time.process_time() - begun) / 200

    alone = batch(np.broadcast_to(np.zeros((1, 3, 32, 32), dtype=np.uint8), (rows, 3, 32, 32)))
    with tempfile.TemporaryDirectory() as folder:  # a hole in the file system: pages of zeros, mapped when touched
        np.lib.format.open_memmap(folder + "/x.npy", mode="w+", dtype=np.uint8, shape=(rows, 3, 32, 32))
        return [batch(np.load(folder + "/x.npy", mmap_mode="r")), alone]


def data_size() -> list[str]:
    """What a batch costs as the data set grows: 64 images of 32 px, in random order.

    The loader by itself, and from a mapped file of which, the larger it is, more pages are touched for the first time:
    that is the system's work, and its pages are not the process's memory.
    """
    lines = []
    for rows in (10_000, 100_000, 1_000_000):
        (mapped, alone), memory = in_child(partial(feed, rows))
        lines.append(f"{rows:9,} images: the loader {1000 * alone:.3f} ms CPU a batch, with the pages of the file "
                     f"{1000 * mapped:5.2f} ms; {memory:5.0f} MiB, those pages included")
    return lines


def main() -> int:
    """Measure everything and write docs/evidence/scale.md."""
    if "--rank" in sys.argv:
        rank()
        return 0
    write_page("scale", "How cost grows", "CPU time of one thread a process, medians. Absolute figures are this "
               "machine's; ratios carry over.",
               [("Two processes", processes), ("A long run", long_run), ("Model, batch, tokens", grown),
                ("Data size", data_size)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
