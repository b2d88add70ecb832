"""How the compress verb trains: an objective of a compressor in the one training loop, in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.parts.compressor import Fit
from osteon.parts.objective import Objective
from osteon.train.loggers import make_loggers
from osteon.train.loop import make_fabric, train
from osteon.train.progress import Progress
from osteon.train.settings import TrainSettings, resolve_settings


def settle(wishes: Mapping[str, Any], recipe: Mapping[str, Any], samples: int,
           kind: str) -> tuple[TrainSettings, list[str]]:
    """Settings of a compressor's training: the user's wishes over its recipe; compressors name a number of steps."""
    asked = {key: value for key, value in wishes.items() if value is not None}
    if "steps" not in asked and "epochs" not in asked and "steps" in recipe:
        asked["steps"] = recipe["steps"]
    return resolve_settings(asked, {k: v for k, v in recipe.items() if k != "steps"}, samples, kind=kind)


def fitter(data: Dataset, run: RunFolder, wishes: Mapping[str, Any], *, progress: bool,
           say: Callable[[str], None]) -> Fit:
    """A function that trains an objective in place, leaving metrics and checkpoints; it resumes from them.

    Args:
        data: the samples.
        run: an open, locked run folder.
        wishes: settings of training the user asked for.
        progress: show a progress bar.
        say: prints a message to the user.
    """
    def fit(objective: Objective, recipe: Mapping[str, Any]) -> None:
        training, notes = settle(wishes, recipe, len(data), objective.backbone.kind)
        for note in notes:
            say(note)
        fabric = make_fabric(training.precision)
        loggers = make_loggers(("jsonl",), run)

        def log(step: int, values: Mapping[str, float]) -> None:
            for logger in loggers:
                logger.log(step, values)

        with Progress(training.steps, title=run.path.name, quiet=not progress) as bar:
            def watch(done: int, values: Mapping[str, float]) -> None:
                bar.update(done, loss=values.get("loss"), images=training.batch_size)

            try:
                train(objective, data, run, training, fabric=fabric, watch=watch, log=log, say=say)
            finally:
                for logger in loggers:
                    logger.close()
        objective.to(torch.device("cpu"))
    return fit
