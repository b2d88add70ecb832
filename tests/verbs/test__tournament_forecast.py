"""A tournament on forecasting: parts by time judge, less error is better, and everything is the tournament's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.recipes import Recipe
from osteon.report.numbers import leader
from osteon.verbs import _tournament_forecast as ahead_jobs
from osteon.verbs._arms import Arm
from osteon.verbs._tournament_ahead import CHECKS, Ahead, about, open_ahead, row_of
from osteon.verbs._tournament_final import against_best, conclude
from osteon.verbs._tournament_plan import check_wish
from osteon.verbs._verdict import judge
from osteon.verbs.compare import compare, table
from osteon.verbs.plan import plan, text

SMALL = {"backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 1, "backbone.patch": 4}
RECIPES = [Recipe("mae", "mae", "vit_tiny", {**SMALL, "decoder_depth": 1}),
           Recipe("forecast", "forecast", "vit_tiny", {**SMALL, "horizon": 4})]
QUICK: dict[str, Any] = {"task": "forecast", "horizon": 6, "context": 24, "recipes": RECIPES, "budget": "12steps",
                         "seeds": 2, "trials": 1, "workers": 1, "progress": False,
                         "settings": {"independent": True, "batch_size": 16}}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 hours of two channels with a period of 12 under a little noise."""
    rng, t = np.random.default_rng(0), np.arange(600)
    values = np.stack([5 + 2 * np.sin(2 * np.pi * t / 12), -3 + 100 * np.cos(2 * np.pi * t / 12)], 1)
    values += 0.1 * np.array([2, 100]) * rng.standard_normal((600, 2))
    lines = [f"{np.datetime64('2020-01-01T00') + i},{a:.5f},{b:.5f}" for i, (a, b) in enumerate(values)]
    path = tmp_path_factory.mktemp("series") / "x.csv"
    path.write_text("\n".join(["date,a,b", *lines]) + "\n")
    return path


def wish(source: Path | str, **changed: Any) -> Any:
    usual = {"train": None, "test": None, "recipes": "auto", "budget": "12steps", "seeds": 1,
             "metrics": ("knn", "linear_probe"), "label_budget": ("all",), "public": (), "control": (),
             "settings": {}, "trials": 1, "finalists": 1, "leaks": "error", "task": "forecast"}
    return check_wish(source, **{**usual, **changed})


def ahead_of(series: Path, *, horizon: int = 6, seeds: int = 1, **options: Any) -> tuple[Ahead, Any]:
    data = open_source(f"{series}:train", window=24, cache=False, **options)
    return open_ahead(data, horizon, seeds), data.spec


def network(channels: int = 1, length: int = 24) -> Any:
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=channels, size=(length,), dim=16, depth=1, heads=2, patch=4)


def standardised(series: Path) -> np.ndarray:
    raw = np.loadtxt(series, delimiter=",", skiprows=1, usecols=(1, 2)).T
    return (raw - raw[:, :360].mean(1, keepdims=True)) / raw[:, :360].std(1, keepdims=True)


# -- what is asked -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changed", "words"), [
    ({"train": "a"}, "--train makes no sense.*by time are training"), ({"test": "a"}, "--test makes no sense"),
    ({"target": "age"}, "--target makes no sense"), ({"label_budget": (10, "all")}, "its own label"),
    ({"public": ("runs/x",)}, "osteon forecast"), ({"control": ("self",)}, "--control makes no sense"),
    ({"leaks": "drop"}, "share no step"), ({"horizon": 0}, "--horizon is at least 1"),
    ({"metrics": ("ncm",)}, "'ncm' reads labels"), ({"context": 24, "settings": {"window": 48}}, "24 and window=48"),
    ({"task": "auto", "horizon": 6, "train": "a", "test": "b"}, "those of a forecast"),
    ({"task": "forecst", "train": "a", "test": "b"}, "Did you mean 'forecast'"),
    ({"task": "auto"}, "needs labelled data.*--task forecast")])
def test_combinations_that_make_no_sense_are_refused(series, changed, words):
    with pytest.raises(UsageError, match=words):
        wish(series, **changed)


def test_the_source_is_the_training_part_of_one_long_series(series, tmp_path):
    found = wish(series, context=24, metrics=("fine_tune",))
    assert found.source == f"{series}:train" == wish(f"{series}:train").source
    assert found.settings == {"window": 24} and found.horizon == 96 and found.metrics == ("ridge", "fine_tune")
    with pytest.raises(UsageError, match="training part of a series, not 'test'"):
        wish(f"{series}:test")
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(UsageError, match="this source holds image"):
        wish(tmp_path / "x.npz")


def test_a_series_must_hold_context_horizon_and_a_validation_part(series):
    with pytest.raises(DataError, match="no forecast of 200 steps"):
        ahead_of(series, horizon=200)
    with pytest.raises(UsageError, match="validation part"):
        ahead_of(series, split="0.8,0.2")


def test_windows_and_what_is_read_of_them_are_counted(series):
    ahead, _ = ahead_of(series, independent=True)
    assert {k: len(v) for k, v in ahead.task.rows.items()} == {"train": 331, "val": 115, "test": 115}
    assert ahead.reading == 2 * (331 + 115 + 115) and ahead.scoring == 2 * (CHECKS * 115 + 115)
    assert ahead.budgets == ["6 steps ahead"] and ahead.block == 12 and ahead.period == 12
    joint, _ = ahead_of(series)
    assert joint.reading == 331 + 115 + 115


# -- reading and training ----------------------------------------------------------------------------------------------

def test_a_network_that_sees_less_than_the_context_sees_its_end(series):
    ahead, spec = ahead_of(series, independent=True)
    short = type(spec)(**{**vars(spec), "size": 20, "shape": (20,)})
    seen = ahead_jobs.look(network(length=20), short, ahead, ("train", "val"))
    assert set(seen.parts) == {"train", "val"} and seen.length == 20
    z = standardised(series)
    window = z[1, ahead.task.rows["val"][7] - 20:ahead.task.rows["val"][7]]
    x = torch.tensor((window - window.mean()) / window.std(), dtype=torch.float32).view(1, 1, 20)
    with torch.no_grad():
        tokens = network(length=20).eval()((x - spec.mean[0]) / spec.std[0]).tokens[0]
    np.testing.assert_allclose(seen.parts["val"][7, 1], tokens.flatten(), atol=1e-4)  # five tokens, eight spans asked
    long = type(spec)(**{**vars(spec), "size": 28, "shape": (28,)})
    with pytest.raises(UsageError, match="sees 28 steps; the context has 24"):
        ahead_jobs.look(network(length=28), long, ahead)


@pytest.mark.parametrize("alone", [True, False])
def test_training_windows_lie_in_the_training_part(series, alone):
    ahead, _ = ahead_of(series, independent=alone)
    made = ahead_jobs.Forecaster(network(1 if alone else 2), ahead, steps=10, seed=0)
    assert made.count == (360 - 24 - 6 + 1) * (2 if alone else 1)
    sample, z = made.sample(np.array([5, made.count - 1]))["series"].numpy(), standardised(series)
    if alone:
        np.testing.assert_allclose(sample[0, 0], z[1, 2:32], atol=1e-4)  # number 5: the third origin, second channel
        np.testing.assert_allclose(sample[1, 0], z[1, 330:360], atol=1e-4)
    else:
        np.testing.assert_allclose(sample, [z[:, 5:35], z[:, 330:360]], atol=1e-4)


def test_of_the_checkpoints_the_best_on_validation_windows_is_scored(series, monkeypatch):
    ahead, _ = ahead_of(series, independent=True)
    told, states = iter([0.9, 0.2, 0.8, 0.7, 0.6]), []

    def error(self: Any) -> float:
        states.append({k: v.clone() for k, v in self.method.state_dict().items()})
        return next(told)

    monkeypatch.setattr(ahead_jobs.Forecaster, "error", error)
    arm = ahead_jobs.train(network(), ahead, steps=10, seed=0)
    assert len(states) == CHECKS
    made = ahead_jobs.Forecaster(network(), ahead, steps=10, seed=0)
    made.method.load_state_dict(states[1])
    at = np.array([0, 40])
    known = np.stack([standardised(series)[:, r - 24:r] for r in ahead.task.rows["test"][at]])
    np.testing.assert_allclose(arm.predict(at), made.rule()(known), atol=1e-4)


def test_the_error_by_which_checkpoints_are_chosen_is_that_of_validation_windows(series):
    ahead, _ = ahead_of(series, independent=True)
    made = ahead_jobs.Forecaster(network(length=20), ahead, steps=10, seed=0)
    z, rows = standardised(series), ahead.task.rows["val"]
    known = torch.tensor(np.stack([z[:, r - 20:r] for r in rows]), dtype=torch.float32)  # it sees the last 20 of 24
    guess = made.method.eval().forecast(known.reshape(-1, 1, 20), 6).numpy().reshape(-1, 2, 6)
    found = made.error()
    assert found == pytest.approx(float(np.mean((guess - np.stack([z[:, r:r + 6] for r in rows]))**2)), rel=1e-4)
    assert made.method.training


def test_quality_is_less_the_error_of_stretches_of_twice_the_horizon(series):
    ahead, _ = ahead_of(series, seeds=2)
    found, z = ahead_jobs.control_arm("last value", "last", ahead), standardised(series)
    each = np.array([((z[:, r:r + 6] - z[:, r - 1:r])**2).mean() for r in range(480, 595)])
    by_hand = [part.mean() for part in np.array_split(each, 9)]  # 115 windows, about 12 a stretch
    np.testing.assert_allclose(found.quality, -np.tile(by_hand, (2, 1)), rtol=1e-4)
    assert found.errors and found.kind == "control"


def test_validation_is_less_an_error_and_features_come_back_from_their_file(series, tmp_path):
    ahead, spec = ahead_of(series, independent=True)
    seen = ahead_jobs.look(network(), spec, ahead)
    ahead_jobs.save_features(tmp_path / "f.npz", seen)
    again = ahead_jobs.load_features(tmp_path / "f.npz")
    found = ahead_jobs.validate(again, ahead)
    arms = {a.evaluator: a for a in ahead_jobs.feature_arms("x", "control", [seen], ahead)}
    for name, by_horizon in found.items():
        assert by_horizon == {"6 steps ahead": pytest.approx(arms[name].validation)} and arms[name].validation < 0
    assert arms["ridge_and_context"].name == "x and context + ridge" and arms["ridge"].name == "x + ridge"
    whole = seen.parts["train"].reshape(662, 6, 16).mean(1)
    assert ahead_jobs.label_free(again)["rankme"] == pytest.approx(_rankme(whole), rel=1e-3)


def _rankme(x: np.ndarray) -> float:
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


# -- the verdict -------------------------------------------------------------------------------------------------------

def arm(name: str, kind: str, error: float, *, validation: float, stretches: int = 30, seed: int = 0) -> Arm:
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(9).uniform(0.2, 0.6, stretches)  # how hard a stretch is, for everybody
    squared = hard * error + 0.01 * rng.standard_normal((2, stretches))
    mse = squared.mean(1).tolist()
    return Arm(name, kind, name, "ridge", "6 steps ahead", -squared, -validation, {"mse": mse, "mae": mse},
               absolute=squared, errors=True)


@pytest.mark.parametrize(("ours", "stretches", "answer"), [(0.8, 30, "pays"), (1.2, 30, "does not pay"),
                                                           (0.995, 30, "cannot tell"), (0.8, 5, "cannot tell")])
def test_less_error_is_better_and_few_stretches_tell_nothing(ours, stretches, answer):
    arms = [arm("ours", "pretrained", ours, validation=0.1, stretches=stretches, seed=1),
            arm("worse", "pretrained", 2.0, validation=0.3, stretches=stretches, seed=2),
            arm("linear map", "control", 1.0, validation=0.2, stretches=stretches, seed=3),
            arm("last value", "control", 9.0, validation=0.9, stretches=stretches, seed=4)]
    found = judge(arms, "MSE")
    assert found["answer"] == answer
    assert (found["numbers"]["pretrained"], found["numbers"]["control"]) == ("ours", "linear map")
    saved = 1 - np.mean(arms[0].scores["mse"]) / np.mean(arms[2].scores["mse"])
    assert found["numbers"]["mean"] == pytest.approx(saved) and found["numbers"]["blocks"] == stretches
    rows = {r["source"]: r for r in against_best(arms)}
    assert set(rows) == {"worse", "linear map", "last value"} and rows["last value"]["mean"] > 0  # the lead of "ours"
    assert rows["last value"]["tie"] is (stretches < 6)
    assert conclude(arms, "MSE", [])["winner"] == "ours"


def test_a_row_is_in_errors_again(series):
    made = arm("ours", "pretrained", 1.0, validation=0.25)
    row = row_of(made)
    assert row["validation"] == 0.25 and row["mean"] == row["mse"] == pytest.approx(np.mean(made.scores["mse"]))
    assert 0 <= row["low"] < row["mean"] < row["high"]
    ahead, _ = ahead_of(series)
    told = about(ahead, {"ranking": [("a", -0.2)], "halving": [{"score": -0.4}, {"score": None}]})
    assert told["ranking"] == [("a", 0.2)] and [r["score"] for r in told["halving"]] == [0.4, None]
    assert leader([0.3, None, 0.1], lowest=True) == 2 and leader([0.3, None, 0.1]) == 0


# -- the whole ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(series: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("t") / "compare"
    return out, compare(series, out=out, **QUICK)


def test_the_whole_of_a_tournament_on_forecasting(series, finished):
    out, result = finished
    arms = {a["name"]: a for a in result["arms"]}
    assert {a["source"]: a["kind"] for a in result["arms"]} == {
        "mae": "pretrained", "forecast": "pretrained", "last value": "control", "seasonal naive (12)": "control",
        "linear map": "control", "untrained vit_tiny": "control", "untrained vit_tiny (forecast's)": "control",
        "vit_tiny from scratch": "control", "vit_tiny (forecast's) from scratch": "control"}
    assert result["metric"] == "MSE" and not result["crashed"] and result["budgets"] == ["6 steps ahead"]
    for a in result["arms"]:
        assert len(a["seeds"]) == 2 and 0 <= a["low"] <= a["mean"] <= a["high"] and a["mae"]**2 <= a["mse"] * 1.001
    z = standardised(series)
    for part, key in ((range(360, 475), "validation"), (range(480, 595), "mse")):
        last = [(z[:, r:r + 6] - z[:, r - 1:r])**2 for r in part]
        assert arms["last value"][key] == pytest.approx(float(np.mean(last)), rel=1e-4)
    assert arms["linear map"]["mean"] < 0.03 < arms["seasonal naive (12)"]["mean"] < 0.05  # noise: 0.02 of the variance
    assert result["verdict"]["answer"] != "pays" and result["verdict"]["crossing"]["budgets"][0]["scratch"]
    scores = [value for _, value in result["ranking"]]
    assert 0 < scores[0] <= scores[1]
    lead = {r["source"]: r for r in result["comparisons"]}["last value"]
    assert lead["low"] > 1 and not lead["tie"]
    for row in result["costs"]:
        assert row["steps"] == 12 and row["flag"] == ""
    assert json.loads((out / "tournament.json").read_text())["windows"] == {"train": 331, "val": 115, "test": 115}


def test_what_is_shown_has_the_least_error_first_and_speaks_of_no_labels(finished):
    _, result = finished
    said = table(result)
    assert "MSE" in said and "labels" not in said.split("\n\n")[0] and said.endswith(result["verdict"]["paragraph"])
    lines = said.splitlines()
    order = [next(i for i, line in enumerate(lines) if line.startswith(name))
             for name in ("linear map", "seasonal naive", "last value")]
    assert order == sorted(order)
    page = Path(result["report"]).read_text()
    assert "Error saved" in page and "Error against compute" in page and "the lowest mean of the column" in page
    board = page[page.index("Leaderboard, 6 steps ahead"):]
    assert board.index("linear map") < board.index("seasonal naive") < board.index("last value")


def test_killed_jobs_are_done_again_with_the_same_result(series, finished, tmp_path):
    out, result = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for name in ("exam-mae", "exam-control-2", "scratch-mae-all-s1"):
        (copy / "jobs" / f"{name}.json").unlink()
    for name in ("exam-mae", "scratch-mae-all-s1"):
        (copy / "scores" / f"{name}.npz").unlink()
    again = compare(series, out=copy, **QUICK)
    for key in ("ranking", "comparisons", "halving", "agreement", "budgets"):
        assert again[key] == result[key], key
    same = [[{k: v for k, v in a.items() if k != "wall_s"} for a in r["arms"]] for r in (again, result)]
    assert same[0] == same[1] and again["verdict"]["sentence"] == result["verdict"]["sentence"]


def test_a_plan_knows_forecasts(series):
    found = plan(series, recipes=RECIPES[:1], budget="12steps", seeds=1, task="forecast", horizon=6, context=24,
                 settings=QUICK["settings"], progress=False)
    assert [a["name"] for a in found["arms"]] == ["mae", "vit_tiny from scratch"]
    assert all(a["steps"] == 12 for a in found["arms"]) and "331 windows of train" in text(found)
