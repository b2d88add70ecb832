"""Where a run's numbers go: ``metrics.jsonl`` always, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from osteon.core.errors import MissingExtra, UsageError, nearest
from osteon.core.run import RunFolder, plain

LOGGERS = ("jsonl", "tensorboard", "wandb")


class Logger(Protocol):
    """Takes the numbers of one step."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record ``values`` after ``step`` steps were done."""

    def close(self) -> None:
        """Finish writing."""


class JsonlLogger:
    """One line of JSON a call in the run's ``metrics.jsonl``."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append ``{"step": step, **values}``."""
        self.run.append_metrics({"step": step, **values})

    def close(self) -> None:
        """Close the file."""
        self.run.close()


class TensorBoardLogger:
    """Event files in the run's ``tensorboard/`` folder.

    Raises:
        MissingExtra: the package tensorboard is not installed.
    """

    def __init__(self, run: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard", why="Logging to TensorBoard") from error
        self._make = SummaryWriter
        self._folder = str(run.path / "tensorboard")
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write every number as a scalar."""
        if self._writer is None:
            # After a resume the steps of the part that was lost are hidden.
            self._writer = self._make(self._folder, purge_step=step)
        for key, value in _numbers(values).items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger:
    """A Weights & Biases run, in the project ``osteon`` unless ``WANDB_PROJECT`` says otherwise; resumed with the run.

    Args:
        run: the run folder; its name becomes the run's name.
        config: settings to show there.

    Raises:
        MissingExtra: the package wandb is not installed.
    """

    def __init__(self, run: RunFolder, config: Mapping[str, Any] | None = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", why="Logging to Weights & Biases") from error
        import os

        place = str(run.path.resolve())
        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", "osteon"), name=run.path.resolve().name,
                               id=hashlib.sha256(place.encode()).hexdigest()[:16], dir=place, resume="allow",
                               config=plain(config or {}))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers of one step."""
        self._run.log(_numbers(values), step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers; text and nested values are for ``metrics.jsonl`` alone."""
    found: dict[str, float] = {}
    for key, value in plain(values).items():
        if isinstance(value, (bool, int, float)):
            found[key] = float(value) if not isinstance(value, int) or abs(value) < 2**63 else math.inf
    return found


def make_loggers(names: str | Sequence[str], run: RunFolder, config: Mapping[str, Any] | None = None) -> list[Logger]:
    """Loggers by name; jsonl is always the first.

    Args:
        names: names of :data:`LOGGERS`, or one text with commas between.
        run: the run folder.
        config: settings, for the loggers that show them.

    Raises:
        UsageError: unknown name.
        MissingExtra: a package is not installed.
    """
    words = [w.strip() for w in names.split(",") if w.strip()] if isinstance(names, str) else list(names)
    for word in words:
        if word not in LOGGERS:
            raise UsageError(f"Unknown logger '{word}'.{nearest(word, LOGGERS)}",
                             fix=f"Choose from {', '.join(LOGGERS)}.")
    loggers: list[Logger] = [JsonlLogger(run)]
    if "tensorboard" in words:
        loggers.append(TensorBoardLogger(run))
    if "wandb" in words:
        loggers.append(WandbLogger(run, config))
    return loggers
