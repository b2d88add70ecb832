"""Ranks that hang or end, and runs that go on with another number of them: a part of `benchmarks.crash`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.crash import CASES, ROOT, Trial
from osteon.core.run import RunFolder

#: seconds a rank waits for the others here
WAIT = 8.0


def hang(folder: Path, data: Path, victim: int) -> list[str]:
    """Stop one of two ranks for good: the other ends in time with exit code 6, and the run resumes. What went wrong."""
    case = next(c for c in CASES if c.ranks == 2)
    trial = Trial(case, folder / f"hang{victim}", data, None)
    trial.environment["OSTEON_RANK_TIMEOUT"] = str(WAIT)
    children = trial.start()
    left = 5  # some steps, so that there is a checkpoint
    for _, what in children[victim].follow():
        left -= what == "+step"
        if left == 0:
            break
    children[victim].kill(signal.SIGSTOP)
    begun = time.monotonic()
    code = children[1 - victim].end()
    seconds = time.monotonic() - begun
    children[victim].kill()
    trial.finish(children)
    said = (trial.folder / "log").read_text()
    wrong = [] if code == 6 else [f"rank {1 - victim} ended with {code}"]
    wrong += [] if seconds < WAIT + 20 else [f"after {seconds:.0f} s"]
    wrong += [f"not said: {text}" for text in (f"did not answer within {WAIT:g} s", "checkpoint of step 3 is complete")
              if text not in " ".join(said.split())]
    trial.resume()
    return [f"hang of rank {victim}: {text}" for text in wrong]


def change_ranks(folder: Path, data: Path) -> list[str]:
    """Begin with one number of ranks and end with another: the samples of every step are the same. What went wrong."""
    pair = next(c for c in CASES if c.ranks == 2)
    wrong = []
    states, rows, seen = [], [], []
    for first, second in ((1, 1), (1, 2), (2, 1)):
        trial = Trial(replace(pair, ranks=first), folder / f"ranks{first}{second}", data, None)
        trial.pretrain.remove("--quiet")
        children = trial.start()
        left = 7
        for _, what in children[0].follow():
            left -= what == "+step"
            if left == 0:
                break
        for child in children:
            child.kill()
        trial.finish(children)
        trial.case = replace(pair, ranks=second)
        trial.resume()
        states.append(RunFolder(trial.out).load_model()[0])
        seen.append({step: set(",".join(texts).split(",")) for step, texts in trial.order.items()})
        rows.append([row["step"] for row in RunFolder(trial.out).metrics()])
        told = "the same samples in the same order" in " ".join((trial.folder / "log").read_text().split())
        if told != (first != second):
            wrong.append(f"{first} -> {second} ranks: " + ("said for nothing" if told else "not said"))
        if rows[-1] != rows[0]:
            wrong.append(f"{first} -> {second} ranks: lines of metrics {rows[-1]}")
        if seen[-1] != seen[0]:
            wrong.append(f"{first} -> {second} ranks: other samples")
        far = max(float((states[-1][k].float() - v.float()).abs().max()) for k, v in states[0].items())
        if not far < 1e-3:
            wrong.append(f"{first} -> {second} ranks: weights differ by {far:.2g}")
    return wrong


def torchrun(folder: Path, data: Path, number: signal.Signals) -> tuple[list[str], float]:
    """Kill or stop one rank under torchrun, with default waiting: what went wrong, and the seconds until all had ended.

    There must be a complete checkpoint, and no process may stay behind.
    """
    case = next(c for c in CASES if c.ranks == 2)
    trial = Trial(case, folder / f"torchrun-{number.name}", data, None)
    words = list(trial.pretrain)
    words[words.index("--steps") + 1] = "100000"
    environment = {**os.environ, "OSTEON_CACHE": trial.environment["OSTEON_CACHE"], "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "osteon",
                                *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 300
    while RunFolder(trial.out).latest_checkpoint() is None and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    ranks = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    begun = time.monotonic()
    if process.poll() is None and ranks:
        os.kill(ranks[-1], number)
    said, _ = process.communicate(timeout=300)
    seconds = time.monotonic() - begun
    wrong = [] if process.returncode not in (0, None) else ["torchrun ended with 0"]
    wrong += [] if seconds < 60 else [f"it took {seconds:.0f} s"]
    wrong += [] if RunFolder(trial.out).latest_checkpoint() is not None else ["no checkpoint"]
    left = [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    wrong += [f"{len(left)} ranks are left"] if left else []
    if number == signal.SIGSTOP and "did not answer within" not in " ".join(said.split()):
        wrong.append("not said which limit ran out")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return [f"torchrun, {number.name}: {text}\n{said[-2000:]}" for text in wrong], seconds


def ranks(folder: Path, data: Path, *, full: bool) -> tuple[list[str], list[str]]:
    """All of it: lines for the page, and what went wrong."""
    torch.set_num_threads(1)
    lost = [*hang(folder, data, 1), *(hang(folder, data, 0) if full else []), *change_ranks(folder, data)]
    lines = [f"- One of two ranks hangs (SIGSTOP): the other waited {WAIT:g} s, as asked, ended with exit code 6, and "
             "the run was resumed.",
             "- From one rank to two and from two to one on resume: the same samples in every step, the same lines of "
             "metrics, weights within 0.001."]
    if full:
        for number, word in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "stopped, so that it hangs,")):
            wrong, seconds = torchrun(folder, data, number)
            lost += wrong
            lines.append(f"- One of two ranks {word} under torchrun, with the default limits: everything had ended "
                         f"after {seconds:.0f} s, with a non-zero code, and no process was left.")
    return lines, lost
