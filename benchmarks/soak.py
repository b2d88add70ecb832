"""Train for hours and see that memory, open files and the time of a step stay the same: a part of ``make faults``.

One process trains through the command line of osteon, again and again into new folders, each run with checkpoints, a
report and an evaluation, and every command is repeated on the finished run. Memory (resident set), open file
descriptors and threads are read after each. Prints a table and writes docs/evidence/soak.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from osteon import cli
from osteon.train.loop import Engine

PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "soak.md"
#: what a trend may come to from the first round that counts to the last: share of memory, share of a step's time
LARGER, SLOWER = 0.05, 0.10
STEPS = 200


class Round:
    """What one run came to.

    Args:
        at: seconds since the beginning.
        memory: resident bytes.
        files: open file descriptors.
        threads: threads of the process.
        step: CPU seconds of a step, the tenth percentile: what others do on the machine adds to the rest.
    """

    def __init__(self, at: float, memory: int, files: int, threads: int, step: float) -> None:
        self.at, self.memory, self.files, self.threads, self.step = at, memory, files, threads, step


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def one_round(folder: Path, seed: int, times: list[float]) -> None:
    """Pre-train, repeat the command on the finished run, evaluate; the folder is gone afterwards."""
    words = ["pretrain", "digits:train", "--objective", "byol", "--backbone", "resnet_tiny", "--steps", str(STEPS),
             "--batch-size", "32", "--seed", str(seed), "--set", "checkpoint_every=50", "--quiet", "--out",
             str(folder / "run")]
    commands = [[*words], [*words], ["evaluate", str(folder / "run"), "--train", "digits:train", "--test",
                                     "digits:test", "--metrics", "knn", "--seeds", "1", "--scratch-steps", "0",
                                     "--quiet"]]
    silent = os.open(os.devnull, os.O_WRONLY)
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        for command in commands:
            try:
                cli.main(command)
            except SystemExit as left:
                if left.code:
                    raise RuntimeError(f"{command[0]} ended with {left.code}") from left
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
        for handle in (silent, *kept):
            os.close(handle)
        shutil.rmtree(folder / "run", ignore_errors=True)


def trend(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of a line through points that lets outliers be: the median over all pairs (Theil and Sen)."""
    pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i + 1, len(x)) if x[j] > x[i]]
    return statistics.median(pairs) if pairs else 0.0


def soak(minutes: float, folder: Path) -> list[Round]:
    """Rounds for so many minutes, at least four."""
    times: list[float] = []
    run = Engine.run

    def timed(self: Engine, *args: object) -> object:
        begun = time.process_time()
        try:
            return run(self, *args)  # type: ignore[arg-type]
        finally:
            times.append(time.process_time() - begun)

    Engine.run = timed  # type: ignore[assignment, method-assign]
    begun, rounds = time.monotonic(), list[Round]()
    while time.monotonic() - begun < 60 * minutes or len(rounds) < 4:
        times.clear()
        one_round(folder, len(rounds), times)
        rounds.append(Round(time.monotonic() - begun, resident(), len(os.listdir("/proc/self/fd")),
                            len(os.listdir("/proc/self/task")), float(np.quantile(times, 0.1))))
        print(f"{rounds[-1].at:6.0f} s  {rounds[-1].memory / 1e6:7.1f} MB  {rounds[-1].files} files  "
              f"{rounds[-1].threads} threads  {1e3 * rounds[-1].step:.2f} ms a step", flush=True)
    return rounds


def judge(rounds: Sequence[Round]) -> tuple[list[str], list[str]]:
    """Lines for the page and what is not flat. The first rounds fill caches of torch and do not count."""
    later = rounds[max(1, len(rounds) // 5):]
    at = [r.at for r in later]
    growth = trend(at, [r.memory for r in later]) * 3600
    total = growth * (at[-1] - at[0]) / 3600
    slower = trend(at, [r.step for r in later]) * (at[-1] - at[0]) / later[0].step
    rows = [("resident memory", f"{later[0].memory / 1e6:.0f} MB", f"{later[-1].memory / 1e6:.0f} MB",
             f"{growth / 1e6:+.1f} MB an hour"),
            ("open files", str(later[0].files), str(later[-1].files), f"{later[-1].files - later[0].files:+d}"),
            ("threads", str(later[0].threads), str(later[-1].threads), f"{later[-1].threads - later[0].threads:+d}"),
            ("CPU of a step", f"{1e3 * later[0].step:.2f} ms", f"{1e3 * later[-1].step:.2f} ms", f"{slower:+.1%}")]
    bad = []
    if total > LARGER * later[0].memory:
        bad.append(f"memory grows by {growth / 1e6:.1f} MB an hour")
    if later[-1].files > later[0].files:
        bad.append("open files grow")
    if later[-1].threads > later[0].threads:
        bad.append("threads grow")
    if slower > SLOWER:
        bad.append(f"steps become {slower:.0%} slower")
    lines = ["| | first | last | trend |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return lines, bad


def main(arguments: list[str] | None = None) -> int:
    """Soak and judge; 0 when everything is flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="osteon-soak-") as folder:
        os.environ["OSTEON_CACHE"] = f"{folder}/cache"
        rounds = soak(asked.minutes, Path(folder))
    lines, bad = judge(rounds)
    steps = STEPS * len(rounds)
    text = ["# A long run", "", "Regenerate with `python -m benchmarks.soak` (a part of `make faults`). One process "
            f"that pre-trains, reports and evaluates again and again: {len(rounds)} runs of {STEPS} steps "
            f"({steps:,} in all) in {rounds[-1].at / 60:.0f} minutes; the first fifth is left out.", "", *lines, "",
            *([f"- {what}" for what in bad] or ["Flat."]), ""]
    print("\n".join(text[4:]))
    PAGE.write_text("\n".join(text), encoding="utf-8")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
