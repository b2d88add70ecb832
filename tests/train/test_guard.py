from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osteon.core.errors import Interrupted, MonitorStop
from osteon.core.run import RunFolder, flatten_state, unflatten_state
from osteon.data import Dataset
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, Draws, Loss, Step
from osteon.train.guard import ALARM, Guard, GuardStop, Measured
from osteon.train.loop import make_fabric, train
from osteon.train.settings import TrainSettings


class Slope(Objective):
    """A number w that every step lowers by the learning rate: w = start - lr * steps."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.w = nn.Parameter(torch.tensor(0.0))

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        x = batch["image"].float().flatten(1)
        return {"features": x, "y": self.w.expand(len(x))}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        return Loss(encoded["y"].mean())


def falling(method: Objective) -> Measured:
    """Of 200 samples, as many are right as 100 + 100 w."""
    right = np.zeros(200)
    right[: round(100 + 100 * float(method.w.detach()))] = 1.0
    return Measured(float(right.mean()), right)


def settings(lr: float, steps: int = 10, **changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": steps, "batch_size": 8, "optimizer": "sgd", "lr": lr, "warmup": 0.0,
                            "schedule": "constant", "weight_decay": 0.0, "momentum": 0.0, "collapse_stop": False,
                            "log_every": 100, **changes})


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_arrays(np.random.default_rng(0).integers(0, 256, (16, 1, 4, 4), dtype=np.uint8))


def run_it(path: Any, data: Dataset, training: TrainSettings, guard: Guard | None, **more: Any
           ) -> tuple[Slope, RunFolder, list[tuple[int, dict[str, float]]]]:
    method, run, rows = Slope(), RunFolder(path), []
    with run.lock():
        run.create_or_resume({})
        try:
            train(method, data, run, training, fabric=make_fabric("32"), guard=guard, say=lambda _: None,
                  log=lambda step, values: rows.append((step, dict(values))), **more)
        except MonitorStop as stop:
            method.stop = stop  # type: ignore[assignment]
    return method, run, rows


def guard_of(steps: int = 10, every: int = 2, measure: Any = falling) -> Guard:
    return Guard(measure, name="knn", every=every, steps=steps)


def test_it_looks_before_the_first_step_then_every_so_often_and_at_the_end(tmp_path, data):
    _, _, rows = run_it(tmp_path / "r", data, settings(0.0, 7), guard_of(7, 3))
    seen = [(step, row["guard/knn"]) for step, row in rows if "guard/knn" in row]
    assert seen == [(0, 0.5), (3, 0.5), (6, 0.5), (7, 0.5)]
    low, high = rows[0][1]["guard/knn_low"], rows[0][1]["guard/knn_high"]
    # 200 samples, half right: 1.96 * sqrt(0.25 / 200) = 0.069
    assert (0.5 - low, high - 0.5) == pytest.approx((0.069, 0.069), abs=0.012)


def test_a_fall_beyond_chance_stops_the_run_and_keeps_best_and_last(tmp_path, data):
    """w falls by 0.05 a step: 5 of 200 samples. The first look that sees too many lost is the one that stops."""
    method, run, rows = run_it(tmp_path / "r", data, settings(0.05), guard_of())
    stop = method.stop
    assert isinstance(stop, GuardStop) and stop.code == 4 and (stop.step, stop.best) == (2, 0)
    assert "0.500 at step 0" in stop.what and "0.450 at step 2" in stop.what and "step 0" in stop.fix
    assert [step for step, row in rows if "guard/knn" in row] == [0, 2]
    assert run.best_checkpoint()[0] == 0 and float(run.best_checkpoint()[1]["objective.w"]) == 0.0
    assert run.latest_checkpoint()[0] == 2 and float(run.latest_checkpoint()[1]["objective.w"]) == pytest.approx(-0.1)


def test_a_fall_within_chance_stops_nothing(tmp_path, data):
    """Two of 200 samples are lost at the end; a resample loses none of them with probability exp(-2) = 0.14."""
    method, run, _ = run_it(tmp_path / "r", data, settings(0.001), guard_of())
    assert not hasattr(method, "stop") and run.latest_checkpoint()[0] == 10


def test_a_rise_is_the_best_and_the_reference_stays_step_0(tmp_path, data):
    """Up by 20 samples in four steps, then back to where it began: no fall, and the top is kept."""
    steps = iter([0.0, 0.1, 0.2, 0.1, 0.0, 0.0])

    def measure(method: Objective) -> Measured:
        method.w.data.fill_(next(steps))
        return falling(method)

    method, run, _ = run_it(tmp_path / "r", data, settings(0.0), guard_of(measure=measure))
    assert not hasattr(method, "stop")
    assert run.best_checkpoint()[0] == 4 and float(run.best_checkpoint()[1]["objective.w"]) == pytest.approx(0.2)


def test_without_labels_it_records_and_never_stops(tmp_path, data):
    method, run, rows = run_it(tmp_path / "r", data, settings(0.05),
                               guard_of(measure=lambda m: Measured(float(m.w.detach()))))
    assert not hasattr(method, "stop") and run.best_checkpoint()[0] == 0
    assert rows[-1][1]["guard/knn"] == pytest.approx(-0.5) and "guard/knn_low" not in rows[0][1]


def test_training_with_and_without_a_guard_is_the_same(tmp_path, data):
    one, *_ = run_it(tmp_path / "a", data, settings(0.001), guard_of())
    other, *_ = run_it(tmp_path / "b", data, settings(0.001), None)
    assert torch.equal(one.w, other.w)


def test_a_resumed_run_sees_and_does_what_the_undisturbed_one_does(tmp_path, data):
    def values(rows: Any) -> list[tuple[int, float]]:
        return [(step, row["guard/knn"]) for step, row in rows if "guard/knn" in row]

    def slowly(method: Objective) -> Measured:
        return falling(method)

    whole, run, rows = run_it(tmp_path / "a", data, settings(0.005), guard_of(measure=slowly))
    _, _, first = run_it(tmp_path / "b", data, settings(0.005), guard_of(measure=slowly), until=5)
    again, second_run, rest = run_it(tmp_path / "b", data, settings(0.005), guard_of(measure=slowly))
    assert torch.equal(whole.w, again.w) and values(first) + values(rest) == values(rows)
    assert str(whole.stop) == str(again.stop).replace("/b", "/a")
    assert second_run.best_checkpoint()[0] == run.best_checkpoint()[0] == 0


def test_a_stopped_run_says_the_same_again_and_trains_no_further(tmp_path, data):
    first, *_ = run_it(tmp_path / "r", data, settings(0.05), guard_of())
    again, run, rows = run_it(tmp_path / "r", data, settings(0.05), guard_of())
    assert str(first.stop) == str(again.stop) and rows == [] and run.latest_checkpoint()[0] == 2


def test_all_looks_together_raise_few_false_alarms():
    """Ten looks at noise: each sample right with probability 0.7, anew each time; at most ALARM of runs stop."""
    rng, stopped, runs = np.random.default_rng(0), 0, 60
    for _ in range(runs):
        guard = guard_of(measure=lambda _m: Measured(0.7, (rng.random(100) < 0.7).astype(float)))
        for done in range(0, 11):
            guard.look(None, done)
        stopped += bool(guard.fallen)
    assert stopped / runs <= ALARM + 3 * (ALARM * (1 - ALARM) / runs) ** 0.5


def test_its_level_is_divided_by_the_looks():
    assert guard_of(10, 2).level == pytest.approx(1 - 2 * ALARM / 5)
    assert guard_of(7, 3).level == pytest.approx(1 - 2 * ALARM / 3)
    assert [n for n in range(8) if guard_of(7, 3).due(n)] == [0, 3, 6, 7]


def test_state_survives_the_checkpoint_format():
    guard = guard_of()
    guard.look(Slope(), 0)
    guard.best, guard.best_step, guard.fallen = 0.75, 4, "fell"
    tensors, skeleton = flatten_state({"guard": guard.state_dict()})
    other = guard_of()
    other.load_state_dict(unflatten_state(tensors, skeleton)["guard"])
    assert (other.best, other.best_step, other.fallen, other.first.score) == (0.75, 4, "fell", 0.5)
    assert np.array_equal(other.first.right, guard.first.right)
    assert Interrupted is not GuardStop and issubclass(GuardStop, MonitorStop)
