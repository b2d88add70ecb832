"""What readers of volumes and clips share: files and folders as payloads, and damage told in one sentence."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from osteon.core.errors import MissingExtra
from osteon.modalities._base import Control, Unreadable
from osteon.parts.types import DataSpec


def checked(payload: bytes | Path) -> Path:
    """The path of a file with something in it, or of a folder. Raises :class:`Unreadable`."""
    if isinstance(payload, bytes):
        raise Unreadable("is bytes without a name, not a file")
    status = payload.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("is not a regular file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise Unreadable("is empty (0 bytes)")
    return payload


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one sentence."""
    try:
        yield
    except (Unreadable, MissingExtra):
        raise
    except FileNotFoundError as error:
        raise Unreadable("file not found") from error
    except PermissionError as error:
        raise Unreadable("no permission to read") from error
    except EOFError as error:
        raise Unreadable("is truncated: its data end too early") from error
    except Exception as error:  # decoders raise about anything on damaged input
        raise Unreadable(f"cannot be decoded: {str(error).strip() or type(error).__name__}") from error


def averaged(values: np.ndarray, few: Sequence[int]) -> np.ndarray:
    """The last sides of values averaged to at most ``few`` cells each: (N, ..., sides) -> (N, D) float32."""
    for side, most in zip(range(values.ndim - len(few), values.ndim), few, strict=True):
        parts = np.array_split(np.arange(values.shape[side]), min(most, values.shape[side]))
        values = np.stack([np.take(values, part, side).mean(side, dtype=np.float32) for part in parts], side)
    return values.reshape(len(values), -1)


def apart(reader: Callable[[np.ndarray], np.ndarray]) -> Control:
    """A control that learns nothing from the training part."""
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        return reader(np.asarray(train)), reader(np.asarray(test))

    return both
