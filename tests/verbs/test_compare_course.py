"""The course of a tournament with jobs that only pretend: who goes on, who is out, what each job is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from osteon.core.errors import MonitorStop
from osteon.data import open_source
from osteon.verbs import _tournament as course
from osteon.verbs._arms import make_task
from osteon.verbs._tournament import Tournament
from osteon.verbs._tournament_engine import Job, result_file
from osteon.verbs._tournament_jobs import validate

PRICE = {"flop": 10.0, "seconds": 1.0}
PROBE = {"backbone": {"name": "vit_tiny", "options": {}, "kind": "tokens"}, "parameters": 9, "lr": 0.1, "batch_size": 4,
         "shares": {"forward": 4, "backward": 6, "views": 0, "teachers": 0, "total": 10}, "notes": [], "step": PRICE,
         "image": {"flop": 0.0, "seconds": 0.0}, "supervised": [{**PRICE, "batch": 4}]}


class Pretender:
    """Writes results at once: a score for each trial's name, or a failure where there is none."""

    def __init__(self, root: Path, scores: Mapping[str, float | None]) -> None:
        self.root, self.scores = root, scores
        self.asked: list[Job] = []

    def map(self, jobs: Sequence[Job], told: Callable[[Job], None]) -> None:
        for job in jobs:
            self.asked.append(job)
            out: dict[str, Any] = {"wall_s": 2.0, "cpu_s": 1.0, "train_s": 2.0, "steps": 1, "labels": 1}
            if job.function == "probe":
                out = PROBE
            elif job.function == "advance":
                score = self.scores[job.name.removeprefix("pretrain-").split("-s")[0]]
                out |= {"score": score, "done_here": 1, "read_s": 0.5} if score is not None else {
                    "error": {"type": "MonitorStop", "what": "collapsed"}}
            result_file(self.root, job.name).parent.mkdir(exist_ok=True)
            result_file(self.root, job.name).write_text(json.dumps(out))
            told(job)

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def tournament(tmp_path, monkeypatch):
    sized = SimpleNamespace(reading=70, scoring=30)
    monkeypatch.setattr(course, "ground", lambda root: SimpleNamespace(judged=sized))

    def make(scores: Mapping[str, float | None], finalists: int = 6) -> tuple[Tournament, Pretender]:
        names = list(dict.fromkeys(name.split("~")[0] for name in scores))
        plan = {"asked": {"budget": {"amount": 90.0, "unit": "steps"}, "seeds": 2, "label_budget": ["all"],
                          "finalists": finalists, "public": []},
                "recipes": [{"name": n} for n in names], "fine_tune": False,
                "trials": [{"number": i, "name": n, "recipe": n.split("~")[0], "options": {"i": i}}
                           for i, n in enumerate(scores)]}
        engine = Pretender(tmp_path, scores)
        return Tournament(tmp_path, plan, engine, lambda text: None), engine

    return make


def test_the_best_option_of_each_recipe_reaches_the_final_and_goes_on_where_it_stood(tournament):
    t, engine = tournament({"a": 0.1, "a~1": 0.9, "a~2": 0.3, "b": 0.5, "b~1": 0.4})
    t.price()
    assert [x.name for x in t.search()] == ["a~1", "b"]
    entrants = t.final([x for x in course.searched(t.plan) if x.name in ("a~1", "b")])
    assert [(e.source, e.run, e.options) for e in entrants] == [("a", "a~1", {"i": 1}), ("b", "b", {"i": 3})]
    stops = {job.name: (job.arguments["until"], job.arguments["steps"], job.arguments["final"])
             for job in engine.asked if job.function == "advance"}
    assert stops["pretrain-a~1-s0-30"] == (30, 90, False) and stops["pretrain-a~1-s0-90"] == (90, 90, True)
    assert stops["pretrain-a~1-s1-90"] == (90, 90, True)
    assert not any(name.startswith("pretrain-a~2") and stop[0] > 30 for name, stop in stops.items())
    scratch = [job for job in engine.asked if job.function == "supervise"]
    assert [(j.arguments["steps"], j.arguments["seed"]) for j in scratch] == [(90, 0), (90, 1)]


def test_a_trial_that_fails_in_a_rung_leaves_its_recipe_to_the_others(tournament):
    t, _ = tournament({"a": None, "a~1": 0.2, "b": None, "b~1": None})
    t.price()
    assert [x.name for x in t.search()] == ["a~1"]
    assert [c["arm"] for c in t.crashed] == ["pretrain-a-s0-30", "pretrain-b-s0-30", "pretrain-b~1-s0-30"]


def test_when_all_fail_the_message_says_why(tournament):
    t, _ = tournament({"a": None, "a~1": None})
    t.price()
    with pytest.raises(MonitorStop, match="collapsed"):
        t.search()


def test_recipes_beyond_the_finalists_are_halved_too_and_what_that_cost_is_told(tournament):
    t, _ = tournament({"a": 0.1, "b": 0.9, "c": 0.5}, finalists=2)
    t.price()
    kept = t.search()
    assert [x.name for x in kept] == ["b", "c"]
    assert t.search_cost([x.number for x in kept]) == {"flop": 300.0, "wall_s": 2.0}


def test_time_of_a_stretch_that_was_cut_short_is_scaled_to_all_of_its_steps(tournament):
    t, _ = tournament({"a": 0.5})
    t.price()
    (row, scratch) = t.costs(t.final(t.search()))
    assert row["wall_s"] == pytest.approx(2.0 * 90 + 0.5) and row["cpu_s"] == pytest.approx(90 + 0.5)
    assert row["steps"] == scratch["steps"] == 90 and row["flop"] == scratch["flop"] == 900.0


def test_validation_scores_the_held_out_samples_and_nothing_else():
    digits = open_source("digits").subset(np.arange(120))
    task = make_task(digits, digits, [20], 1)
    features = np.eye(10, dtype=np.float32)[digits.labels]
    assert validate(features, task, ["knn"], 0) == {"knn": {"20": 1.0}}
    features[task.held_out] = np.roll(features[task.held_out], 1, axis=1)  # every one looks like the class before it
    assert validate(features, task, ["knn"], 0) == {"knn": {"20": 0.0}}
