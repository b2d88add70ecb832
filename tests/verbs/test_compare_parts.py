"""The parts of a tournament by hand: budgets, halving, ties, the crossing, agreement of measures, engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osteon.core import lock
from osteon.core.errors import Interrupted, MissingExtra, UsageError
from osteon.verbs import _tournament_jobs as jobs_module
from osteon.verbs._arms import Arm
from osteon.verbs._tournament_budget import Budget, Price, off_by, parse_budget, steps_within
from osteon.verbs._tournament_engine import Job, LocalEngine, make_engine, perform, result, result_file
from osteon.verbs._tournament_final import against_best, agreement, by_source, conclude, crossing, ranking, spearman
from osteon.verbs._tournament_jobs import overall
from osteon.verbs._tournament_plan import allot, allot_scratch
from osteon.verbs._tournament_study import Study, Trial, rungs, survivors

# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "amount", "unit"), [
    ("10m", 600, "seconds"), ("90s", 90, "seconds"), ("1.5h", 5400, "seconds"), ("5e15flop", 5e15, "flop"),
    ("2000steps", 2000, "steps"), (" 1_000 Steps ", 1000, "steps"), ("1step", 1, "steps"), ("2E9FLOPs", 2e9, "flop"),
    (".5h", 1800, "seconds"),
])
def test_budgets_are_read(text, amount, unit):
    assert parse_budget(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["", "10", "m", "ten minutes", "10 parsecs", "-5m", "0s", "1e999flop", "10m5s",
                                  "2.5steps", "nanflop", "1..2h"])
def test_other_words_are_no_budget(text):
    with pytest.raises(UsageError):
        parse_budget(text)


def test_a_budget_buys_whole_steps_to_the_nearest_and_refuses_too_few():
    ten = Budget(100.0, "seconds")
    assert steps_within(ten, 100.0, Price(1.0, 3.0, 1), what="x") == 33
    assert steps_within(ten, 98.0, Price(1.0, 4.0, 1), what="x") == 24  # 24.5, to even
    with pytest.raises(UsageError, match="buys 5 steps of x") as error:
        steps_within(ten, 100.0, Price(1.0, 20.0, 1), what="x")
    assert "4 min 00 s" in error.value.fix  # ten steps take 200 s, and a fifth more
    assert off_by(ten, 103.0) == pytest.approx(0.03) and off_by(ten, 90.0) == pytest.approx(-0.1)


KNOWN = {"step": {"flop": 100.0, "seconds": 2.0}, "image": {"flop": 1.0, "seconds": 0.01},
         "supervised": [{"flop": 10.0, "seconds": 0.5}, {"flop": 40.0, "seconds": 1.0}]}


@pytest.mark.parametrize(("budget", "fine_tune", "steps", "tuned"), [
    (Budget(10_000, "flop"), False, 95, ()),  # (10000 - 500 read) / 100
    (Budget(10_000, "flop"), True, 75, (200, 50)),  # 2000 to fine-tuning: 2000/10, 2000/40
    (Budget(1000, "steps"), True, 800, (200, 200)), (Budget(1000, "steps"), False, 1000, ()),
    (Budget(205, "seconds"), False, 100, ()),
])
def test_an_arm_pays_for_pre_training_reading_and_fine_tuning(budget, fine_tune, steps, tuned):
    got = allot(budget, KNOWN, read=500, fine_tune=fine_tune, what="x")
    assert (got.steps, got.supervised) == (steps, tuned)
    assert abs(got.off) < 0.05
    if budget.unit == "flop":
        assert [p.flop for p in got.price] == [10_000.0] * len(got.price)


def test_scratch_gets_the_whole_budget_at_every_label_budget():
    got = allot_scratch(Budget(10_000, "flop"), KNOWN, read=400, what="x")
    assert got.supervised == (960, 240) and got.steps == 0
    assert [p.flop for p in got.price] == [10_000.0, 10_000.0]
    assert [p.steps for p in got.price] == [960, 240]


# -- halving -----------------------------------------------------------------------------------------------------------

def trials(*recipes: str) -> list[Trial]:
    return [Trial(i, f"{r}-{i}", r, {}) for i, r in enumerate(recipes)]


def test_every_recipe_goes_on_with_its_best_trial_before_any_gets_a_second():
    some = trials("a", "a", "a", "b", "b", "b")
    scores = {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.3, 4: 0.4, 5: 0.1}
    assert [t.number for t in survivors(some, scores, finalists=2, last=True)] == [0, 4]
    assert [t.number for t in survivors(some, scores, finalists=1, last=True)] == [0]
    # Not the last rung: two of six live on, and one finalist leaves room for the best of the rest.
    assert [t.number for t in survivors(some, scores, finalists=1, last=False)] == [0, 1]
    assert [t.number for t in survivors(some, scores, finalists=2, last=False)] == [0, 4]


def test_equals_go_by_number_and_a_crashed_trial_is_out():
    some = trials("a", "a", "b")
    assert [t.number for t in survivors(some, {0: 0.5, 1: 0.5, 2: 0.5}, finalists=1, last=True)] == [0]
    assert [t.number for t in survivors(some, {1: 0.1}, finalists=2, last=True)] == [1]
    assert survivors(some, {}, finalists=2, last=True) == []


def test_rungs_stand_at_a_third_and_a_ninth_and_only_where_somebody_leaves():
    assert rungs(6, 6, steps=900) == []
    assert rungs(18, 6, steps=900) == [300]
    assert rungs(19, 6, steps=900) == [100, 300]
    assert rungs(500, 6, steps=900) == [100, 300]
    assert rungs(7, 6, steps=2) == [1]


def test_the_study_decides_from_its_journal_whatever_the_order_and_whoever_asks(tmp_path):
    some = trials("a", "a", "b")
    study = Study(tmp_path, some)
    study.report(0, {2: 0.3})
    other = Study(tmp_path, some)  # another process comes in
    other.report(0, {0: 0.1, 1: None})
    study.report(0, {0: 0.9, 2: 0.9})  # what is in the journal stands
    assert study.scores(0) == other.scores(0) == {0: 0.1, 2: 0.3}
    study.end([some[0]], won={2: 0.7})
    study.end([some[2]])  # ended is ended
    with study._held() as inside:
        assert [(t.state.name, t.value) for t in inside.get_trials()] == [
            ("PRUNED", 0.1), ("FAIL", None), ("COMPLETE", 0.7)]


def test_a_line_cut_short_by_a_kill_is_cut_off(tmp_path):
    some = trials("a", "b")
    Study(tmp_path, some).report(0, {0: 0.5})
    with open(tmp_path / "study.journal", "ab") as file:
        file.write(b'{"op_code": 7, "worker')
    study = Study(tmp_path, some)
    study.report(0, {1: 0.25})
    assert Study(tmp_path, some).scores(0) == {0: 0.5, 1: 0.25}


# -- the end -----------------------------------------------------------------------------------------------------------

def arm(source: str, kind: str, budget: int, rights: list[float], validation: float, evaluator: str = "knn") -> Arm:
    """Two seeds alike, 200 test samples; of each 10 consecutive ones, the first ``10 * share`` are right."""
    quality = np.concatenate([(np.arange(10) < round(10 * share)).astype(float) for share in rights] * (
        200 // (10 * len(rights))))
    return Arm(f"{source} + {evaluator}", kind, source, evaluator, budget, np.stack([quality, quality]), validation)


ARMS = [arm("simclr", "pretrained", 10, [0.9], 0.8), arm("simclr", "pretrained", 10, [1.0], 0.7, "ncm"),
        arm("mae", "pretrained", 10, [0.9], 0.75), arm("raw", "control", 10, [0.5], 0.5),
        arm("net from scratch", "control", 10, [0.3], 0.3, "from scratch"),
        arm("simclr", "pretrained", 99, [0.9], 0.8), arm("simclr", "pretrained", 99, [0.8], 0.7, "ncm"),
        arm("mae", "pretrained", 99, [0.9], 0.9), arm("raw", "control", 99, [0.6], 0.5),
        arm("net from scratch", "control", 99, [0.9], 0.9, "from scratch")]


def test_evaluations_and_winner_are_chosen_on_the_validation_part():
    assert by_source(ARMS, 10)["simclr"].evaluator == "knn"  # although ncm is right on every test sample
    assert ranking(ARMS) == [("mae", pytest.approx(0.825)), ("simclr", pytest.approx(0.8))]
    assert [s for s, _ in ranking([a for a in ARMS if a.budget == 10])] == ["simclr", "mae"]


def test_arms_that_the_data_do_not_tell_apart_are_ties_by_holm():
    rows = {r["source"]: r for r in against_best(ARMS) if r["budget"] == 10}
    assert {r["best"] for r in rows.values()} == {"simclr"}
    assert rows["mae"]["tie"] and rows["mae"]["mean"] == 0 and rows["mae"]["p"] > 0.5
    assert not rows["raw"]["tie"] and rows["raw"]["mean"] == pytest.approx(0.4)
    assert rows["raw"]["p"] == pytest.approx(3 * 2 / 4001, rel=0.01)  # the smallest p of 4,000 resamples, of three


def test_a_lead_that_chance_explains_one_time_in_seven_is_a_tie_and_one_in_two_thousand_is_none():
    def against(right: int) -> dict[str, Any]:
        """One arm right on 40 of 80 samples; the other also on the last ``right`` of the rest, but not on the first."""
        a, b = np.repeat([1.0, 0.0], 40), np.repeat([1.0, 0.0], 40)
        a[80 - right:], a[0] = 1.0, 0.0
        arms = [Arm(n, "pretrained", n, "knn", 1, q[None], v) for n, q, v in (("a", a, 0.9), ("b", b, 0.1))]
        return against_best(arms)[0]

    assert 0.05 < against(4)["p"] < 0.5 and against(4)["tie"]
    assert against(16)["p"] < 0.01 and not against(16)["tie"]


def test_scratch_catches_up_where_the_lead_is_no_longer_significant():
    caught = crossing(ARMS)
    assert caught is not None and caught["from"] == 99
    assert [r["ahead"] for r in caught["budgets"]] == [True, False]
    assert caught["budgets"][0]["mean"] == pytest.approx(0.6)
    never = [a for a in ARMS if a.budget == 10]
    assert crossing(never) == {"from": None, "budgets": [{**crossing(never)["budgets"][0]}]}  # type: ignore[index]
    assert crossing([a for a in ARMS if a.evaluator != "from scratch"]) is None


def test_the_paragraph_names_answer_winner_cost_and_crossing():
    costs = [{"name": "mae", "budget": "10 min", "steps": 1234, "flop": 5e12, "wall_s": 90.0}]
    verdict = conclude(ARMS, "accuracy", costs)
    assert verdict["answer"] == "pays" and verdict["winner"] == "mae"
    for words in ("Pre-training paid: with 10 labels", "is mae", "1,234 steps", "5.00e+12 FLOP", "1 min 30 s",
                  "catches up from 99 labels on"):
        assert words in verdict["paragraph"]


def test_rank_correlation_shares_the_rank_of_equals():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # scipy.stats.spearmanr
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_agreement_uses_the_arms_that_have_both_measures():
    rows = agreement({"rankme": {"a": 1, "b": 2, "c": 3, "d": 0}, "knn": {"a": 0.1, "b": 0.2, "c": 0.3},
                      "fine-tuned": {"a": 1}})
    assert rows == [{"a": "rankme", "b": "knn", "spearman": pytest.approx(1.0), "arms": 3}]


def test_overall_takes_the_best_evaluator_at_each_budget():
    assert overall({"knn": {"10": 0.2, "all": 0.9}, "ncm": {"10": 0.4, "all": 0.5}}) == pytest.approx(0.65)


# -- engines -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def counted(monkeypatch):
    calls: list[str] = []

    def count(root: Path, *, word: str) -> dict[str, Any]:
        calls.append(word)
        if word == "bad":
            raise ZeroDivisionError("oh")
        if word == "stop":
            raise Interrupted(15, where="here")
        return {"word": word, "nan": float("nan")}

    monkeypatch.setattr(jobs_module, "count", count, raising=False)
    return calls


def test_a_job_is_done_once_its_failure_is_its_result_and_being_stopped_is_neither(tmp_path, counted):
    engine, told = LocalEngine(tmp_path, 1), []
    some = [Job(w, "count", {"word": w}) for w in ("good", "bad")]
    engine.map(some, lambda job: told.append(job.name))
    engine.map(some, lambda job: told.append(job.name))
    assert counted == told == ["good", "bad"]
    assert result(tmp_path, "good") == {"word": "good", "nan": None}
    assert result(tmp_path, "bad") == {"error": {"type": "ZeroDivisionError", "what": "oh"}}
    with pytest.raises(Interrupted):
        engine.map([Job("stop", "count", {"word": "stop"})], lambda job: None)
    assert not result_file(tmp_path, "stop").exists()
    assert perform(str(tmp_path), "good", "count", {"word": "good"}) == "done"
    for name in ("good", "bad", "stop"):
        lock.release(lock.take(tmp_path / "jobs" / f"{name}.lock"))  # free again


def test_a_job_somebody_else_is_at_is_waited_for(tmp_path, counted):
    (tmp_path / "jobs").mkdir()
    handle = lock.take(tmp_path / "jobs" / "good.lock")
    assert perform(str(tmp_path), "good", "count", {"word": "good"}) == "busy" and counted == []
    threading.Timer(0.5, lambda: lock.release(handle)).start()
    begun = time.monotonic()
    LocalEngine(tmp_path, 1).map([Job("good", "count", {"word": "good"})], lambda job: None)
    assert time.monotonic() - begun >= 0.4 and counted == ["good"]


def test_engines_by_name(tmp_path, monkeypatch):
    assert isinstance(make_engine("local", tmp_path, 2), LocalEngine)
    with pytest.raises(UsageError, match="Did you mean 'local'"):
        make_engine("lokal", tmp_path, None)
    with pytest.raises(UsageError, match="do no work"):
        make_engine("local", tmp_path, 0)
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("slurm", "ray"):
        with pytest.raises(MissingExtra, match=rf"osteon\[{name}\]"):
            make_engine(name, tmp_path, None)


def assassin(lock_file: Path, kills: int, killed: list[int]) -> None:
    """Kill whoever holds the lock, so many times."""
    end = time.monotonic() + 60
    while len(killed) < kills and time.monotonic() < end:
        try:
            holder = int(json.loads(lock_file.read_text())["pid"])
        except (OSError, ValueError):
            holder = 0
        if holder and holder not in killed and holder != os.getpid():
            killed.append(holder)
            os.kill(holder, signal.SIGKILL)
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "error"), [(1, "FileNotFoundError"), (2, "ProcessDied")])
def test_a_process_that_dies_is_replaced_and_its_job_blamed_when_it_dies_again(tmp_path, kills, error):
    killed: list[int] = []
    watcher = threading.Thread(target=assassin, args=(tmp_path / "jobs" / "bad.lock", kills, killed))
    watcher.start()
    engine = LocalEngine(tmp_path, 2)
    try:  # without a plan a probe fails, after it has imported what it needs
        engine.map([Job("bad", "probe", {"recipe": "x"}), Job("good", "probe", {"recipe": "x"})], lambda job: None)
    finally:
        engine.close()
    watcher.join()
    assert len(killed) == kills
    assert result(tmp_path, "bad")["error"]["type"] == error
    assert result(tmp_path, "good")["error"]["type"] == "FileNotFoundError"


ORPHANS = """
import sys, time
from pathlib import Path
from osteon.verbs._tournament_engine import Job, LocalEngine
if __name__ == "__main__":
    root = Path(sys.argv[1])
    engine = LocalEngine(root, 2)
    engine.map([Job(f"j{i}", "no_such_job", {}) for i in range(2)], lambda job: None)
    (root / "pids").write_text(" ".join(str(p) for p in engine._pool._processes) + " .")
    time.sleep(300)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    note = tmp_path / "pids"
    try:
        for _ in range(1500):
            if note.exists() and note.read_text().endswith("."):
                break
            time.sleep(0.1)
        pids = [int(p) for p in note.read_text().split()[:-1]]
    finally:
        process.kill()
        process.wait()
    assert len(pids) == 2
    for _ in range(200):
        if not any(Path(f"/proc/{p}").exists() for p in pids):
            return
        time.sleep(0.1)
    pytest.fail("orphans wait for work that never comes")


@pytest.mark.slow
def test_submitit_does_jobs_as_local_processes_where_there_is_no_cluster(tmp_path):
    pytest.importorskip("submitit")
    engine, told = make_engine("slurm", tmp_path, 1), []
    engine.map([Job("bad", "probe", {"recipe": "x"})], lambda job: told.append(job.name))
    engine.close()
    assert told == ["bad"] and result(tmp_path, "bad")["error"]["type"] == "FileNotFoundError"
