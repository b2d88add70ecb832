"""While a network's operations are recorded, or mapped over samples: no shortcut may depend on the values it sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """Inside, :func:`holds` is always False, so that networks take the way that is right for every sample."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def tracing() -> bool:
    """Whether operations are recorded."""
    return _TRACED.get()


def holds(condition: Tensor) -> bool:
    """Whether a condition on values, () bool, is known to hold and a shortcut may be taken."""
    return not tracing() and bool(condition)
