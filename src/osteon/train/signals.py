"""SIGTERM and SIGINT while training: a checkpoint is saved at the end of the step; a long step is not waited for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from osteon.core.errors import Interrupted, Terminated
from osteon.core.run import RunFolder

#: seconds a signal waits for the end of the step; the environment variable OSTEON_GRACE says otherwise
GRACE = float(os.environ.get("OSTEON_GRACE", "8"))


class Signals:
    """Remembers SIGTERM and SIGINT so that the loop can save before it ends.

    Args:
        run: the run folder, which knows what is kept when a step is given up.
    """

    def __init__(self, run: RunFolder) -> None:
        self.caught, self.run = 0, run
        self._late = False
        self._timer: threading.Timer | None = None

    def _note(self, number: int, _frame: object) -> None:
        if self._late:
            self._late = False
            raise Interrupted(self.caught, where=str(self.run.path), saved=(
                f"the step did not end in {GRACE:g} s and was given up. {self.run.kept()}").rstrip("."))
        if self.caught:  # asked twice: do not wait for the step to end
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.caught = number
        self._timer = threading.Timer(GRACE, self._remind, [number])
        self._timer.daemon = True
        self._timer.start()

    def _remind(self, number: int) -> None:
        self._late = True
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # which wakes it from waiting

    def saving(self) -> None:
        """The step has ended: whatever writing the checkpoint takes, it is waited for."""
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def watching(self) -> Iterator[Signals]:
        """Handle the signals inside a ``with`` block; :attr:`caught` is the number of the first, or 0."""
        try:
            old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: somebody else handles signals
            yield self
            return
        try:
            yield self
        finally:
            self.saving()
            for number, before in old.items():
                signal.signal(number, before)
