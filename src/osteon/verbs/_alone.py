"""A verb that leaves results in a folder is the only one to write there while it works."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from osteon.core import lock

P = ParamSpec("P")
R = TypeVar("R")


def alone_in(*names: str, file: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Hold the folder that a verb writes to for as long as it works; without one, nothing is held.

    Args:
        names: arguments that may name the folder; the first that is given counts. Of several runs, the first; a run
            that is not there is left to the verb to complain about.
        file: the argument names a file, and only that file is held.

    Raises:
        InUseError: another process writes there, before anything is computed.
    """
    def decorate(verb: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(verb)

        @functools.wraps(verb)
        def held(*args: P.args, **options: P.kwargs) -> R:
            place = _place(names, signature.bind_partial(*args, **options).arguments)
            if place is None:
                return verb(*args, **options)
            if file:
                with lock.alone(place.parent, name=f".{place.name}.lock"):
                    return verb(*args, **options)
            with lock.alone(place):
                return verb(*args, **options)

        return held

    return decorate


def _place(names: tuple[str, ...], given: dict[str, Any]) -> Path | None:
    for name in names:
        value = given.get(name)
        if value is None:
            continue
        path = Path(value if isinstance(value, str | Path) else next(iter(value), ""))
        if name == "out":
            return path
        return path if path.is_dir() else None
    return None
