"""Errors a person can act on: what was wrong, where, what to do, and the process exit code that goes with each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

#: Documented exit codes of the ``osteon`` command.
EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "internal error (a defect in osteon: please report it)",
    2: "wrong use or input",
    3: "run folder or cache is in use by another process, or its settings differ",
    4: "training was stopped by a monitor (NaN, infinity, collapse, features made worse by continuing); the last good "
       "checkpoint is kept",
    5: "an optional dependency is missing",
    6: "another process of the same run ended or hung; the newest checkpoint is kept",
    130: "interrupted (SIGINT); a checkpoint was saved where training had begun",
    143: "terminated (SIGTERM); a checkpoint was saved where training had begun",
}


class OsteonError(Exception):
    """Base of every error osteon raises on purpose.

    Args:
        what: one sentence on what is wrong.
        where: file, option, tensor or sample it concerns.
        fix: what the user can do about it.
    """

    code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what + (f" (at {where})" if where else "") + (f" {fix}" if fix else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross a process boundary whole, whatever the subclass's arguments."""
        return _rebuild, (type(self), str(self), dict(self.__dict__))


def _rebuild(kind: type[OsteonError], text: str, state: dict[str, Any]) -> OsteonError:
    error = kind.__new__(kind)
    error.args = (text,)
    error.__dict__.update(state)
    return error


class UsageError(OsteonError):
    """A wrong option, name or combination of settings."""

    code = 2


class DataError(OsteonError):
    """Input data that cannot be used as given."""

    code = 2


class InUseError(OsteonError):
    """A run folder or cache is locked by a living process, or was made with other settings."""

    code = 3


class MonitorStop(OsteonError):
    """A monitor ended training: NaN, infinity or collapsed features."""

    code = 4


class MissingExtra(OsteonError):
    """An optional dependency is not installed."""

    code = 5

    def __init__(self, package: str, extra: str, *, why: str) -> None:
        super().__init__(f"{why} needs the package {package}.", fix=f"Install it with: pip install 'osteon[{extra}]'")


class RankLost(OsteonError):
    """Another process of a run over several ranks ended or did not answer in time."""

    code = 6


class Interrupted(OsteonError):
    """Training was stopped by a signal.

    Args:
        signum: the signal.
        where: the run folder.
        saved: what can be gone on from.
    """

    def __init__(self, signum: int, *, where: str, saved: str = "a checkpoint was saved") -> None:
        super().__init__(f"Stopped by signal {signum}; {saved}.", where=where,
                         fix="Run the same command again to go on from there.")
        self.code = 128 + signum


class Terminated(KeyboardInterrupt):
    """SIGTERM where there is nothing to save: ends the command as Ctrl-C does, with its own exit code."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
