"""A progress bar with step, loss, rank, images a second and the time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, SupportsFloat, TextIO

#: Seconds between redraws of the bar, the least and the most seconds between plain lines.
REDRAW, LEAST, MOST = 0.1, 3.0, 30.0


class Progress:
    """Shows how far training is. A context manager.

    Args:
        total: number of steps.
        done: steps that were done before (a resumed run); by default one less than the first update tells.
        title: what is running.
        quiet: show nothing.
        stream: where to write; standard error by default, so that results can be piped.
        clock: seconds, for tests.
    """

    def __init__(self, total: int, *, done: int | None = None, title: str = "training", quiet: bool = False,
                 stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.total, self.title, self.quiet = total, title, quiet
        self._stream, self._clock = stream or sys.stderr, clock
        self._bar: Any = None
        self._task: Any = None
        self._first = done
        self._begun = self._drawn = clock()
        self._shown = done or 0
        self._images = 0
        self._rank = ""
        self._lines = 0

    def __enter__(self) -> Progress:
        self._begun = self._drawn = self._clock()
        if not self.quiet and self._stream.isatty():
            self._start_bar()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                        TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
                        console=Console(file=self._stream), refresh_per_second=4)
        self._task = self._bar.add_task(self.title, total=self.total, completed=self._first or 0, text="")
        self._bar.start()

    def update(self, done: int, *, loss: SupportsFloat | None = None, rank: float | None = None,
               images: int = 0) -> None:
        """Tell where training is; cheap between redraws (the loss is read only when it is shown).

        Args:
            done: steps done.
            loss: the step's loss.
            rank: effective rank, when measured; the last one stays shown.
            images: images seen in this step.
        """
        self._images += images
        if self._first is None:
            self._first = max(0, done - 1)
            if self._bar is not None:
                self._bar.reset(self._task, total=self.total, completed=self._first, text="")
        if rank is not None:
            self._rank = f"rank {rank:.1f}"
        if self.quiet:
            return
        now = self._clock()
        if self._bar is None:
            if self._line_due(done, now):
                self._line(done, now, loss)
        elif now - self._drawn >= REDRAW or done >= self.total:
            self._drawn = now
            self._bar.update(self._task, completed=done, text=self._text(now, loss))

    def _line_due(self, done: int, now: float) -> bool:
        if self._lines == 0 or (done >= self.total and self._shown < self.total):
            return True
        waited = now - self._drawn
        return waited >= MOST or (waited >= LEAST and (done - self._shown) * 10 >= self.total)

    def _line(self, done: int, now: float, loss: SupportsFloat | None) -> None:
        elapsed, steps = now - self._begun, done - (self._first or 0)
        left = f"  {_clock_text(elapsed / steps * (self.total - done))} left" if 0 < steps and done < self.total else ""
        print(f"{self.title} {done}/{self.total}  {self._text(now, loss)}{left}", file=self._stream, flush=True)
        self._drawn, self._shown, self._lines = now, done, self._lines + 1

    def _text(self, now: float, loss: SupportsFloat | None) -> str:
        parts = [f"loss {float(loss):.4g}"] if loss is not None else []
        parts += [self._rank] if self._rank else []
        if self._images and now > self._begun:
            parts.append(f"{self._images / (now - self._begun):.0f} samples/s")
        return "  ".join(parts)

    def note(self, text: str) -> None:
        """Print a message above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


def _clock_text(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
