"""Successive halving over recipes and their options, kept in an Optuna study so that any process can go on with it.

Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", arXiv:1502.07943,
figure 3. A rung is decided from the values in the journal, and only when every trial in it has one: so neither the
order in which processes finish nor a kill changes a decision.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteon.core import lock
from osteon.core.errors import InUseError

if TYPE_CHECKING:
    import optuna

#: of n trials, n / ETA live on after a rung
ETA = 3
#: most rungs before the final
RUNGS = 2
STUDY = "tournament"


@dataclass(frozen=True)
class Trial:
    """A recipe with one choice of its searched options; ``number`` counts all trials of the tournament."""

    number: int
    name: str
    recipe: str
    options: Mapping[str, Any]


def rungs(trials: int, finalists: int, *, steps: int) -> list[int]:
    """Steps at which trials are compared before the final: none where all reach it anyway.

    Args:
        trials: how many there are.
        finalists: how many reach the final.
        steps: length of the whole schedule.
    """
    if trials <= finalists:
        return []
    count = min(RUNGS, max(1, math.ceil(math.log(trials / finalists) / math.log(ETA) - 1e-9)))
    return sorted({max(1, round(steps * ETA ** -(count - i))) for i in range(count)})


def survivors(trials: Sequence[Trial], scores: Mapping[int, float], *, finalists: int, last: bool) -> list[Trial]:
    """Who goes on after a rung.

    The best trial of each of the best ``finalists`` recipes goes on; before the last rung the best of the others fill
    up to a third of the trials. Of equals the one with the lower number is better.

    Args:
        trials: those in the rung.
        scores: number -> validation score; a trial without one has crashed and is out.
        finalists: most recipes in the final.
        last: whether the final comes next, which takes one trial a recipe.
    """
    ranked = sorted((t for t in trials if t.number in scores), key=lambda t: (-scores[t.number], t.number))
    kept: list[Trial] = []
    for trial in ranked:
        if len(kept) < finalists and trial.recipe not in {t.recipe for t in kept}:
            kept.append(trial)
    room = 0 if last else math.ceil(len(trials) / ETA)
    for trial in ranked:
        if len(kept) < room and trial not in kept:
            kept.append(trial)
    return sorted(kept, key=lambda t: t.number)


class Study:
    """The journal of a tournament.

    Args:
        root: folder of the tournament; the journal is ``study.journal`` in it.
        trials: all trials, in a fixed order.
    """

    def __init__(self, root: Path, trials: Sequence[Trial]) -> None:
        self.root, self.trials = root, list(trials)
        with self._held() as study:
            for trial in self.trials[len(study.get_trials(deepcopy=False)):]:
                study.enqueue_trial({"trial": trial.number}, user_attrs={
                    "name": trial.name, "recipe": trial.recipe, "options": json.dumps(dict(trial.options))})

    @contextmanager
    def _held(self) -> Iterator[optuna.Study]:
        """The study, while nobody else has it."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        file = self.root / "study.journal"
        handle = _take(self.root / "study.lock")
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(logging.WARNING)
        try:
            _mend(file)
            with _quiet():
                storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_Held()))  # type: ignore[arg-type]
                # Every trial is entered in advance, in its order: there is nothing left to sample.
                yield optuna.create_study(study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True,
                                          sampler=optuna.samplers.RandomSampler(seed=0))
        finally:
            optuna.logging.set_verbosity(before)
            lock.release(handle)

    def report(self, rung: int, scores: Mapping[int, float | None]) -> None:
        """Write the scores of a rung: trial number -> validation score, None where the trial crashed."""
        import optuna

        with self._held() as study:
            self._begin(study)
            for frozen in study.get_trials(deepcopy=False):
                number = frozen.number  # trials are entered in their order
                if number not in scores or frozen.state.is_finished():
                    continue
                value = scores[number]
                if value is None:
                    study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
                elif rung not in frozen.intermediate_values:
                    optuna.trial.Trial(study, frozen._trial_id).report(value, rung)

    def _begin(self, study: optuna.Study) -> None:
        """Take every waiting trial up, in its order; the grid is fixed, so nothing is sampled."""
        import optuna

        while study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]):
            study.ask().suggest_int("trial", 0, max(0, len(self.trials) - 1))

    def scores(self, rung: int) -> dict[int, float]:
        """The scores of a rung that are in the journal."""
        with self._held() as study:
            return {t.number: t.intermediate_values[rung] for t in study.get_trials(deepcopy=False)
                    if rung in t.intermediate_values}

    def end(self, out: Sequence[Trial], *, won: Mapping[int, float] | None = None) -> None:
        """Close trials: those that are out as pruned, those of the final (``won``: number -> score) as complete."""
        import optuna

        numbers = {t.number for t in out}
        with self._held() as study:
            self._begin(study)
            for frozen in study.get_trials(deepcopy=False):
                number = frozen.number  # trials are entered in their order
                if frozen.state.is_finished():
                    continue
                if number in numbers:
                    study.tell(frozen.number, state=optuna.trial.TrialState.PRUNED)
                elif won and number in won:
                    study.tell(frozen.number, won[number])


class _Held:
    """Optuna's own lock is not needed, and would outlive a killed holder: the study is used under ours."""

    def acquire(self) -> bool:
        """Held already."""
        return True

    def release(self) -> None:
        """Let go of with ours."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Journal storage is called experimental by Optuna; its behaviour here is tested."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        yield


def _take(file: Path) -> int:
    """Wait for a lock that is only ever held for moments."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(InUseError):
            return lock.take(file)
        time.sleep(0.05)


def _mend(file: Path) -> None:
    """Cut off a last line that a kill left unfinished."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(file, "r+b") as handle:
            handle.truncate(whole)
