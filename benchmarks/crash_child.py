"""A forked process of `benchmarks.crash`: does a command of osteon and tells through a pipe where it is."""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from osteon import cli
from osteon.core.run import RunFolder
from osteon.data import cache
from osteon.data.loader import Loader
from osteon.train.guard import Guard
from osteon.train.loop import Engine
from osteon.verbs import evaluate, pretrain

#: what is killed -> where it happens: (owner, attribute)
MOMENTS: dict[str, tuple[Any, str]] = {
    "step": (Engine, "run"), "checkpoint": (RunFolder, "save_checkpoint"), "loader": (Loader, "at"),
    "guard": (Guard, "look"), "report": (pretrain, "page"), "cache": (cache, "_commit"),
    "evaluation": (evaluate, "make_task")}
#: how long the evaluation is: it is entered once and killed within this many seconds
EVALUATION = 0.3
#: seconds after which a process that should have ended counts as hanging
PATIENCE = 120.0


class Child:
    """A command in a process of its own, forked from one in which everything is imported.

    Args:
        commands: argument lists of ``osteon``, done one after another while they succeed.
        environment: variables to set.
        log: file for what it prints.
    """

    def __init__(self, commands: list[list[str]], environment: Mapping[str, str], log: Path) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _be_a_process(commands, environment, log, writer)
        os.close(writer)
        self.pipe, self._rest = reader, b""
        #: events so far: (time, what), e.g. ``+step``, ``-step``, ``=12 7,31,4`` (the samples of a step)
        self.events: list[tuple[float, str]] = []
        self.code: int | None = None
        #: whether it had to be killed because it did not end
        self.hung = False

    def follow(self, until: float = float("inf")) -> Iterator[tuple[float, str]]:
        """Events as they come, to the end of the process or a moment of :func:`time.monotonic`."""
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                moment, _, what = line.decode().partition(" ")
                self.events.append((float(moment), what))
                yield self.events[-1]
            wait = until - time.monotonic()
            if wait <= 0 or not select.select([self.pipe], [], [], min(wait, 60))[0]:
                if time.monotonic() >= until:
                    return
                continue
            data = os.read(self.pipe, 1 << 16)
            if not data:
                return
            self._rest += data

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def dead(self) -> bool:
        """Whether the process has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Read on to the end; the exit code, negative for a signal."""
        if self.code is None:
            until = time.monotonic() + PATIENCE
            for _ in self.follow(until):
                pass
            while not self.dead() and time.monotonic() < until:  # the pipe closes a moment before the process ends
                time.sleep(0.01)
            self.hung = not self.dead()
            if self.hung:
                self.kill()
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pipe)
        return self.code

    def training(self) -> list[tuple[float, str]]:
        """Events before the evaluation, whose controls train as well."""
        names = [what for _, what in self.events]
        return self.events[:names.index("+evaluation") + 1] if "+evaluation" in names else self.events

    def inside(self) -> str:
        """The moment that was begun last and not ended."""
        open_ = []
        for _, what in self.events:
            if what[0] == "+":
                open_.append(what[1:])
            elif what[0] == "-" and what[1:] in open_:
                open_.remove(what[1:])
        # The loader works ahead beside everything else: what the main thread did counts first.
        main = [name for name in open_ if name != "loader"]
        if "evaluation" in main:  # whose controls train as well
            return "evaluation"
        return main[-1] if main else open_[-1] if open_ else "between"


def _be_a_process(commands: list[list[str]], environment: Mapping[str, str], log: Path, pipe: int) -> None:
    code = 1
    try:
        os.environ.update(environment)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        for name, (owner, attribute) in MOMENTS.items():
            setattr(owner, attribute, _telling(name, getattr(owner, attribute), pipe))
        for words in commands:
            try:
                cli.main(words)
            except SystemExit as left:
                code = int(left.code or 0)
            if code:
                break
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _telling(name: str, work: Callable[..., Any], pipe: int) -> Callable[..., Any]:
    """The same function, saying when it begins and ends and, of a step, which samples it sees."""
    def say(text: str) -> None:
        os.write(pipe, f"{time.monotonic():.6f} {text}\n".encode())

    @functools.wraps(work)
    def told(*args: Any, **options: Any) -> Any:
        say(f"+{name}")
        if name == "step":
            say(f"={args[2].index} {','.join(map(str, args[1]['index'].tolist()))}")
        try:
            return work(*args, **options)
        finally:
            if name != "evaluation":  # to its end the command evaluates
                say(f"-{name}")

    return told
