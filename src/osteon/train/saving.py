"""What a checkpoint holds, and how a run takes it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from osteon.core.errors import MonitorStop
from osteon.core.run import RunFolder, flatten_state, unflatten_state
from osteon.parts.objective import Objective
from osteon.train.agreement import AgreementMonitor
from osteon.train.guard import Guard
from osteon.train.monitors import CollapseMonitor
from osteon.train.ranks import working_alone
from osteon.train.settings import TrainSettings

if TYPE_CHECKING:
    from osteon.train.loop import Engine

#: what watches a run and remembers something
Watched = Mapping[str, CollapseMonitor | AgreementMonitor | Guard]


def save(objective: Objective, engine: Engine, watched: Watched, run: RunFolder,
         settings: TrainSettings, done: int, measured: Mapping[str, float], *, best: bool = False) -> None:
    """Write a checkpoint (rank 0); every rank waits until it is on disk."""
    with working_alone(engine.world):
        if engine.rank:
            return
        tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
        extra, skeleton = flatten_state({"optimizer": engine.optimizer.state_dict(), "measured": dict(measured),
                                         **{name: w.state_dict() for name, w in watched.items()}})
        run.save_checkpoint(done, tensors | {f"state.{k}": v for k, v in extra.items()},
                            {"step": done, "state": skeleton, "settings": asdict(settings), "ranks": engine.world},
                            best=best)


def resume(objective: Objective, engine: Engine, watched: Watched, run: RunFolder,
           settings: TrainSettings, say: Callable[[str], None]) -> tuple[int, dict[str, float]]:
    """Load the newest complete checkpoint; return the step to go on from and what monitors measured last."""
    found = run.latest_checkpoint()
    for warning in run.warnings:
        say(warning)
    if found is None:
        if engine.rank == 0:
            run.truncate_metrics(0)
        return 0, {}
    done, tensors, meta = found
    objective.load_state_dict({k[len("objective."):]: v for k, v in tensors.items() if k.startswith("objective.")})
    state = unflatten_state({k[len("state."):]: v for k, v in tensors.items() if k.startswith("state.")}, meta["state"])
    engine.optimizer.load_state_dict(state["optimizer"])
    for name, monitor in watched.items():
        if name in state:  # an older checkpoint knows nothing of a newer monitor, which then begins afresh
            monitor.load_state_dict(state[name])
    if engine.rank == 0:
        run.truncate_metrics(done)
    say(f"Resuming from step {done} of {settings.steps}.")
    before = int(meta.get("ranks", engine.world))
    if before != engine.world:
        say(f"The checkpoint was written by {before} processes and {engine.world} go on: the same samples in the same "
            "order, but sums round differently and dropout draws anew, so that bits differ from here on.")
    return int(done), dict(state.get("measured", {}))


@contextmanager
def telling_what_is_kept(run: RunFolder) -> Iterator[None]:
    """Say at the end of a monitor's message which checkpoint there is to go back to."""
    try:
        yield
    except MonitorStop as stop:
        found = run.latest_checkpoint()
        kept = ("No checkpoint had been written yet." if found is None else
                f"The checkpoint of step {found[0]} is kept. To go on from it with other settings, name it: --init "
                f"{run.path / 'checkpoints' / f'step_{found[0]:08d}.safetensors'} --out NEW.")
        raise MonitorStop(stop.what, where=stop.where, fix=f"{stop.fix} {kept}") from stop
