"""Kill runs with SIGKILL at random moments and see that, resumed, they end as if nothing had been: ``make faults``.

Every run goes through the command line of osteon: forked from a process in which everything is imported (which saves
the seconds an import takes, so that a hundred kills cost minutes), some as processes of their own. A moment is drawn
from those of the undisturbed run: within a step, a checkpoint, the loader, the evaluation, the report, the building of
the cache. What must agree, bit for bit: the weights, ``metrics.jsonl`` without the wall time, the samples of every
step, and the scores. Prints a table and writes docs/evidence/crash.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crash_child import EVALUATION, MOMENTS, Child
from osteon.core.run import RunFolder

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence" / "crash.md"
#: number of the last step
LAST = 11
#: kills from which on the page is written and torchrun is tried as well
FULL = 20
_VIT = ["--backbone", "vit_tiny", "--set", "backbone.depth=2", "--set", "backbone.dim=32", "--set", "backbone.heads=2"]
_CNN = ["--backbone", "resnet_tiny"]


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Args:
        name: in the table.
        words: what is asked of ``osteon pretrain`` beside the common settings.
        ranks: processes.
        init: goes on from a run that was trained before.
    """

    name: str
    words: list[str]
    ranks: int = 1
    init: bool = False


CASES = [
    Case("plain (SimCLR)", ["--objective", "simclr", *_CNN]),
    Case("accumulation (MAE)", ["--objective", "mae", *_VIT, "--accumulate", "2"]),
    Case("EMA (DINO)", ["--objective", "dino", *_VIT, "--set", "outputs=32", "--set", "head_width=32"]),
    Case("queue (SwAV)", ["--objective", "swav", *_VIT, "--set", "queue=16", "--set", "queue_start=0.2"]),
    Case("momentum encoder (MoCo v3)", ["--objective", "moco_v3", *_VIT, "--set", "out=32"]),
    Case("guard (going on)", ["--objective", "mae", "--set", "guard_every=4"], init=True),
    Case("2 gloo ranks (BYOL)", ["--objective", "byol", *_CNN], ranks=2),
]


@dataclass
class Outcome:
    """What a run left, for comparison.

    Args:
        weights: bytes of every tensor of the model.
        metrics: rows without wall times.
        scores: of the evaluation.
        order: step -> samples seen, in their order, one text a rank.
    """

    weights: dict[str, bytes]
    metrics: list[dict[str, Any]]
    scores: Any
    order: dict[int, set[str]]

    def differs(self, other: Outcome) -> list[str]:
        """Names of the parts that are not equal."""
        return [name for name in ("weights", "metrics", "scores", "order")
                if getattr(self, name) != getattr(other, name)]


@dataclass
class Count:
    """Kills of one case."""

    kills: int = 0
    places: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


class Trial:
    """One run folder with its cache, killed and resumed.

    Args:
        case: what is run.
        folder: empty folder.
        data: folder with ``images/`` and labelled ``train.npz`` and ``test.npz``.
        init: run to go on from.
    """

    def __init__(self, case: Case, folder: Path, data: Path, init: Path | None) -> None:
        self.case, self.folder, self.out = case, folder, folder / "run"
        folder.mkdir(parents=True)
        self.pretrain = ["pretrain", str(data / "images"), *case.words, "--out", str(self.out), "--quiet",
                         "--steps", str(LAST + 1), "--batch-size", "8"]
        for text in ("precision=32", "checkpoint_every=3", "log_every=2", "monitor_every=5"):
            self.pretrain += ["--set", text]
        if case.init:
            self.pretrain += ["--init", str(init), "--guard", str(data / "train.npz")]
        self.evaluate = ["evaluate", str(self.out), "--train", str(data / "train.npz"), "--test",
                         str(data / "test.npz"), "--metrics", "knn", "--seeds", "1", "--quiet"]
        self.environment = {"OSTEON_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "OSTEON_RANK_TIMEOUT": "20"}
        self.order: dict[int, set[str]] = {}

    def start(self) -> list[Child]:
        """Fork the processes of the run; one process also evaluates it."""
        commands = [self.pretrain] if self.case.ranks > 1 else [self.pretrain, self.evaluate]
        log = self.folder / "log"
        return [Child(commands, {**self.environment, **extra}, log) for extra in rank_variables(self.case.ranks)]

    def finish(self, children: list[Child]) -> list[int]:
        """Wait for the processes; their exit codes. What they saw is noted."""
        codes = [child.end() for child in children]
        for child in children:
            for _, what in child.training():
                if what[0] == "=":
                    step, seen = what[1:].split()
                    self.order.setdefault(int(step), set()).add(seen)
        return codes

    def resume(self) -> list[Child]:
        """Run to the end, and say what went wrong if it does."""
        children = self.start()
        if any(self.finish(children)):
            raise RuntimeError(f"{self.case.name} did not resume:\n{(self.folder / 'log').read_text()[-3000:]}")
        return children

    def outcome(self) -> Outcome:
        """What there is now."""
        run = RunFolder(self.out)
        state, _ = run.load_model()
        rows = [{k: v for k, v in row.items() if k != "images_per_s"} for row in run.metrics()]
        file = self.out / "evaluation.json"
        scores = json.loads(file.read_text()) if file.exists() else None
        weights = {name: tensor.contiguous().flatten().numpy().tobytes() for name, tensor in state.items()}
        if scores:
            scores = [{k: v for k, v in arm.items() if k != "wall_s"} for arm in scores["arms"]]
        return Outcome(weights, rows, scores, {step: set(seen) for step, seen in self.order.items()})


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun would set for each process; nothing for one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
             "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]


def spans(child: Child) -> dict[str, list[float]]:
    """Seconds each entrance into a moment lasted, by moment."""
    begun: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for moment, what in child.training():
        if what[0] == "+":
            begun[what[1:]] = moment
            if what == "+evaluation":
                found["evaluation"] = [EVALUATION]
        elif what[0] == "-" and what[1:] in begun:
            found.setdefault(what[1:], []).append(moment - begun[what[1:]])
    return found


def kill_within(children: list[Child], moment: str, entrance: int, delay: float, victim: int) -> str:
    """Kill a process a while after it entered a moment for the n-th time; where it was."""
    child, left = children[victim], entrance
    for _, what in child.follow():
        left -= what == f"+{moment}"
        if left == 0:
            break
    else:
        return ""  # it ended before
    until = time.monotonic() + delay
    for _ in child.follow(until):
        pass
    child.kill()
    child.end()
    return child.inside() if child.code == -signal.SIGKILL else ""


def kill_often(trial: Trial, seen: Mapping[str, list[float]], moment: str, chance: random.Random, count: Count,
               most: int) -> None:
    """Kill one run up to three times, first within the moment, then anywhere."""
    for _ in range(min(most, chance.choice((1, 1, 2, 3)))):
        children = trial.start()
        lengths = seen[moment]
        entrance = chance.randrange(len(lengths))
        place = kill_within(children, moment, entrance + 1, chance.uniform(0, lengths[entrance]),
                            chance.randrange(len(children)))
        codes = trial.finish(children)
        if place:
            count.kills += 1
            count.places[place] += 1
            # A rank may end well only when the last step was done: the report is rank 0's alone.
            early = 0 in codes and LAST not in trial.order
            if len(children) > 1 and (early or any(child.hung for child in children)):
                count.lost.append(f"{trial.case.name}: the other rank ended with {codes}")
        moment = chance.choice(sorted(seen))


def study(case: Case, kills: int, folder: Path, data: Path, init: Path | None, seed: int) -> Count:
    """Kill a case's runs so many times and compare each with the undisturbed one."""
    chance, count = random.Random(f"{seed} {case.name}"), Count()
    whole = Trial(case, folder / "whole", data, init)
    seen = spans(whole.resume()[0])
    wanted = whole.outcome()
    order = [m for m in MOMENTS if m in seen]
    number = 0
    while count.kills < kills and number < 3 * kills + 10:
        trial = Trial(case, folder / str(number), data, init)
        kill_often(trial, seen, order[number % len(order)], chance, count, kills - count.kills)
        try:
            trial.resume()
            wrong = trial.outcome().differs(wanted)
        except RuntimeError as error:
            wrong = [str(error)]
        if wrong:
            count.lost.append(f"{case.name}, run {number}: {', '.join(wrong)}")
        else:
            shutil.rmtree(trial.folder)
        number += 1
    return count


def study_processes(kills: int, folder: Path, data: Path, seed: int) -> Count:
    """The same with the command as a process of its own, killed at any time of its life."""
    chance, count, case = random.Random(seed), Count(), CASES[0]
    if not kills:
        return count
    whole = Trial(case, folder / "whole", data, None)
    environment = {**os.environ, **whole.environment, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}

    def run(trial: Trial, seconds: float) -> tuple[int, float]:
        begun = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "osteon", *trial.pretrain], stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL,
                                   env={**environment, "OSTEON_CACHE": trial.environment["OSTEON_CACHE"]})
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait(), time.monotonic() - begun

    _, length = run(whole, 600)
    wanted = whole.outcome()
    for number in range(kills):
        trial = Trial(case, folder / str(number), data, None)
        code, _ = run(trial, chance.uniform(0.2, 1.0) * length)
        count.kills += code == -signal.SIGKILL
        count.places["any time"] += code == -signal.SIGKILL
        run(trial, 600)
        wrong = trial.outcome().differs(wanted)
        if wrong:
            count.lost.append(f"process {number}: {', '.join(wrong)}")
    return count


def make_data(folder: Path) -> Path:
    """Small pictures of digits to pre-train on, labelled arrays to score on."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16 * 255).round().astype(np.uint8)
    (folder / "images").mkdir(parents=True)
    for i in range(64):
        Image.fromarray(images[i]).save(folder / "images" / f"{i:03d}.png")
    for name, rows in (("train", slice(100, 200)), ("test", slice(200, 260))):
        np.savez(folder / f"{name}.npz", image=images[rows][..., None], label=digits.target[rows])
    return folder


def page(counts: Mapping[str, Count], ranks: list[str]) -> str:
    """The table as Markdown, and what was seen of ranks."""
    places = [*MOMENTS, "between"]
    lines = ["# Killed and resumed", "",
             "Regenerate with `python -m benchmarks.crash` (a part of `make faults`). Runs of 12 steps on 64 images, "
             "killed with SIGKILL once to three times each and resumed with the same command. Lost is a run whose "
             "weights, metrics without wall time, samples of a step or scores differ by one bit from those of the "
             "undisturbed run. The columns say where the main thread was. The loader is a thread that prepares three "
             "batches ahead; there are no worker processes, so none are lost with the run.", "",
             f"| run | kills | {' | '.join(places)} | any time | lost |", f"|---|{'---|' * (len(places) + 3)}"]
    for name, count in counts.items():
        cells = [str(count.places.get(p, 0)) for p in [*places, "any time"]]
        lines.append(f"| {name} | {count.kills} | {' | '.join(cells)} | {len(count.lost)} |")
    total = sum(c.kills for c in counts.values())
    lost = [text for c in counts.values() for text in c.lost]
    return "\n".join([*lines, "", f"{total} kills, {len(lost)} runs lost.", *(f"\n- {text}" for text in lost), "",
                      *(["## Ranks", "", *ranks, ""] if ranks else [])])


def main(arguments: list[str] | None = None) -> int:
    """Kill, resume, compare; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("--real", type=int, default=5, help="how many of them hit processes of their own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept")
    asked = parser.parse_args(arguments)
    cases = [case for case in CASES if asked.case in case.name]
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="osteon-crash-"))
    data = make_data(folder / "data")
    init = None
    left = asked.kills - asked.real
    shares = [left // len(cases) + (number < left % len(cases)) for number in range(len(cases))]
    if any(case.init and share for case, share in zip(cases, shares, strict=True)):
        first = Trial(CASES[1], folder / "init", data, None)
        first.resume()
        init = first.out
    counts: dict[str, Count] = {}
    for number, (case, share) in enumerate(zip(cases, shares, strict=True)):
        begun = time.monotonic()
        counts[case.name] = study(case, share, folder / str(number), data, init, asked.seed) if share else Count()
        print(f"{case.name:28} {counts[case.name].kills:3} kills, {len(counts[case.name].lost)} lost, "
              f"{time.monotonic() - begun:.0f} s", flush=True)
    if asked.real:
        counts["own process (SimCLR)"] = study_processes(asked.real, folder / "own", data, asked.seed)
    told: list[str] = []
    lost = any(count.lost for count in counts.values())
    if any(case.ranks > 1 for case in cases):
        from benchmarks.crash_ranks import ranks

        told, wrong = ranks(folder / "ranks", data, full=asked.kills >= FULL)
        print("\n".join(wrong))
        lost |= bool(wrong)
    text = page(counts, told)
    print(text.split("\n\n", 2)[2])
    if not asked.case and asked.kills >= FULL:
        PAGE.write_text(text, encoding="utf-8")
    if asked.keep is None and not lost:
        shutil.rmtree(folder)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
