"""The tournament end to end on tiny networks: equal compute, validation chooses, a crash costs one arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osteon.core.errors import DataError, InUseError, MonitorStop, UsageError
from osteon.recipes import Recipe
from osteon.verbs import _tournament_jobs as jobs_module
from osteon.verbs.compare import compare, table

SMALL = {"flip": False, "batch_size": 16, "backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 1}
SIMCLR = Recipe("simclr", "simclr", "vit_tiny", {**SMALL, "out": 16}, {"lr_scale": (1.0, 0.3)})
MAE = Recipe("mae", "mae", "vit_tiny", {**SMALL, "decoder_depth": 1})
QUICK: dict[str, Any] = {"recipes": [SIMCLR, MAE], "budget": "12steps", "seeds": 2, "metrics": ("knn", "ncm"),
                         "label_budget": (20, "all"), "trials": 2, "workers": 1, "progress": False}


def write_digits(folder: Path, name: str, start: int, stop: int, *, labels: np.ndarray | None = None) -> Path:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[start:stop] / 16 * 255).round().astype(np.uint8)[..., None]
    np.savez(folder / name, image=images, label=digits.target[start:stop] if labels is None else labels)
    return folder / name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"source": write_digits(folder, "source.npz", 0, 200), "train": write_digits(folder, "train.npz", 200, 320),
            "test": write_digits(folder, "test.npz", 320, 400)}


def run(data: dict[str, Path], out: Path, **changed: Any) -> dict[str, Any]:
    arguments = {**QUICK, **changed}
    source = arguments.pop("source", data["source"])
    test = arguments.pop("test", data["test"])
    return compare(source, train=data["train"], test=test, out=out, leaks="allow", **arguments)


@pytest.fixture(scope="module")
def finished(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("t") / "compare"
    return out, run(data, out)


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """What a repetition must give again: all but times."""
    keep = {k: result[k] for k in ("ranking", "comparisons", "halving", "agreement", "crashed", "budgets")}
    keep["arms"] = [{k: v for k, v in a.items() if k != "wall_s"} for a in result["arms"]]
    keep["verdict"] = {k: result["verdict"][k] for k in ("answer", "sentence", "numbers", "winner", "crossing")}
    keep["costs"] = [{k: c[k] for k in ("name", "steps", "flop", "planned_off")} for c in result["costs"]]
    return json.loads(json.dumps(keep))


def test_controls_are_contestants_and_every_arm_has_an_interval_over_all_seeds(finished):
    _, result = finished
    sources = {a["source"]: a["kind"] for a in result["arms"]}
    assert sources == {"simclr": "pretrained", "mae": "pretrained", "raw pixels": "control",
                       "image statistics": "control", "untrained vit_tiny": "control",
                       "vit_tiny from scratch": "control"}
    assert all(len(a["seeds"]) == 2 and a["low"] <= a["mean"] <= a["high"] for a in result["arms"])
    assert {(a["source"], a["budget"]) for a in result["arms"]} == {(s, b) for s in sources for b in (20, "all")}
    assert result["verdict"]["answer"] in ("pays", "does not pay", "cannot tell")


def test_arms_are_equal_in_steps_and_what_a_step_costs_is_counted_in_full(finished):
    _, result = finished
    for row in result["costs"]:
        assert row["steps"] == 12 and row["planned_off"] == 0 and row["flag"] == ""
        assert row["wall_s"] > 0 and row["cpu_s"] > 0
    mae = next(c for c in result["costs"] if c["name"] == "mae")
    assert mae["shares"]["total"] == sum(v for k, v in mae["shares"].items() if k != "total")
    assert mae["flop"] > 12 * mae["shares"]["total"]  # reading the features is part of it


def test_halving_keeps_the_better_option_by_its_validation_score(finished):
    out, result = finished
    rows = [r for r in result["halving"] if r["recipe"] == "simclr"]
    best = max(rows, key=lambda r: (r["score"], r["trial"] == "simclr"))
    assert [r["trial"] for r in rows if r["kept"]] == [best["trial"]]
    assert {r["step"] for r in result["halving"]} == {4} and len(result["halving"]) == 3
    chosen = next(c for c in result["costs"] if c["name"] == "simclr")
    assert chosen["options"] == best["options"]
    assert result["search_cost"]["flop"] == pytest.approx(4 * chosen["shares"]["total"])


def test_the_searched_learning_rate_is_a_factor_of_the_recipes_own(finished):
    import yaml

    out, _ = finished
    own, scaled = (yaml.safe_load((out / "runs" / f"{name}-s0" / "config.yaml").read_text())["train"]["lr"]
                   for name in ("simclr", "simclr~1"))
    assert scaled == pytest.approx(0.3 * own)


def test_the_journal_is_a_readable_optuna_study(finished):
    import optuna

    out, result = finished
    from osteon.verbs._tournament_study import Study, Trial

    trials = [Trial(i, "", "", {}) for i in range(3)]
    with Study(out, trials)._held() as study:
        states = [t.state.name for t in study.get_trials()]
        values = {t.user_attrs["name"]: t.intermediate_values[0] for t in study.get_trials()}
    assert sorted(states) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert values == {r["trial"]: r["score"] for r in result["halving"]}
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_a_finished_tournament_costs_nothing_and_says_the_same(data, finished, monkeypatch):
    out, result = finished
    monkeypatch.setattr(jobs_module, "pretrain", None)
    monkeypatch.setattr(jobs_module, "train_and_score", None)
    again = run(data, out)
    assert lasting(again) == lasting(result)
    assert json.loads((out / "tournament.json").read_text())["verdict"] == json.loads(
        json.dumps(again["verdict"]))


def test_a_killed_arm_is_done_again_with_the_same_result(data, finished, tmp_path):
    import shutil

    out, result = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    # As if killed while the last stretch of one arm and one training from scratch were under way.
    for name in ("pretrain-mae-s1-12", "scratch-simclr-20-s0", "exam-mae"):
        (copy / "jobs" / f"{name}.json").unlink()
    shutil.rmtree(copy / "runs" / "mae-s1")
    assert lasting(run(data, copy)) == lasting(result)


def test_permuted_test_labels_change_neither_choice_nor_halving(data, finished, tmp_path):
    _, result = finished
    from sklearn.datasets import load_digits

    labels = np.random.default_rng(0).permutation(load_digits().target[320:400])
    other = run(data, tmp_path / "t", test=write_digits(tmp_path, "test.npz", 320, 400, labels=labels))
    assert other["ranking"] == result["ranking"] and other["halving"] == result["halving"]
    assert other["verdict"]["winner"] == result["verdict"]["winner"]
    assert [c["best"] for c in other["comparisons"]] == [c["best"] for c in result["comparisons"]]
    assert [a["mean"] for a in other["arms"]] != [a["mean"] for a in result["arms"]]


def test_a_crashed_arm_is_reported_and_the_others_go_on(data, tmp_path):
    wild = Recipe("wild", "simclr", "vit_tiny", {**SMALL, "out": 16, "train.lr": 1e30, "optimizer": "sgd"})
    result = run(data, tmp_path / "t", recipes=[wild, MAE], label_budget=(20,), seeds=1)
    assert any("wild" in c["arm"] and c["type"] == "MonitorStop" for c in result["crashed"])
    assert [c["name"] for c in result["costs"]] == ["mae", "vit_tiny from scratch"]
    assert {a["source"] for a in result["arms"] if a["kind"] == "pretrained"} == {"mae"}
    assert "FAILED" in table(result) and "wild" in table(result)
    page = (tmp_path / "t" / "report.html").read_text()
    assert "Arms that failed" in page


def test_when_every_arm_fails_their_errors_are_the_message(data, tmp_path):
    wild = Recipe("wild", "simclr", "vit_tiny", {**SMALL, "out": 16, "train.lr": 1e30, "optimizer": "sgd"})
    with pytest.raises(MonitorStop, match="Every arm failed.*wild"):
        run(data, tmp_path / "t", recipes=[wild], label_budget=(20,), seeds=1)


def test_budgets_in_operations_are_equal_within_five_percent_with_fine_tuning_counted(data, tmp_path):
    result = run(data, tmp_path / "t", budget="1.6e9flop", seeds=1, metrics=("knn", "fine_tune"), label_budget=(30,),
                 trials=1)
    assert {a["evaluator"] for a in result["arms"]} >= {"knn", "fine-tuned", "from scratch"}
    spent = {c["name"]: c["flop"] for c in result["costs"]}
    assert all(abs(v / 1.6e9 - 1) < 0.05 for v in spent.values()), spent
    assert all(c["flag"] == "" for c in result["costs"])
    tuned = next(c for c in result["costs"] if c["name"] == "mae")
    assert 0 < tuned["pretraining"] < tuned["steps"]


def test_self_control_and_a_run_as_public_weights(data, finished, tmp_path):
    out, _ = finished
    result = run(data, tmp_path / "t", recipes=[MAE], control=("self",), public=(str(out / "runs" / "mae-s0"),),
                 label_budget=("all",), seeds=1, metrics=("knn",))
    kinds = {a["source"]: a["kind"] for a in result["arms"]}
    assert kinds["mae on --train"] == "control" and kinds["mae-s0 (public)"] == "control"
    config = (tmp_path / "t" / "runs" / "mae~self-s0" / "config.yaml").read_text()
    assert str(data["train"]) in config


def test_other_settings_on_the_same_folder_are_refused_and_named(data, finished):
    out, _ = finished
    with pytest.raises(InUseError, match="seeds: 2 -> 3"):
        run(data, out, seeds=3)


@pytest.mark.parametrize(("changed", "words"), [
    ({"recipes": "simclt"}, "Did you mean 'simclr'"), ({"recipes": ""}, "no recipe"),
    ({"budget": "10 parsecs"}, "no budget"), ({"budget": "0steps"}, "buys nothing"), ({"seeds": 0}, "--seeds"),
    ({"label_budget": (500,)}, "more than"), ({"metrics": ("rankme",)}, "no evaluator"),
    ({"metrics": ("label_free",)}, "nothing to compare"), ({"control": ("selfish",)}, "Did you mean 'self'"),
    ({"engine": "slurn"}, "Did you mean 'slurm'"), ({"settings": {"temprature": 1}}, "Unknown setting"),
    ({"settings": {"temperature": "hot"}}, "temperature"), ({"recipes": "supervised,nosuch"}, "no objective"),
    ({"settings": {"steps": 5}}, "tournament's to choose"), ({"workers": 0}, "workers"),
])
def test_wrong_use_is_refused_before_anything_is_written(data, tmp_path, changed, words):
    with pytest.raises(UsageError, match=words):
        run(data, tmp_path / "t", **{"recipes": "simclr", **changed})
    assert not list((tmp_path / "t").glob("*")) if (tmp_path / "t").exists() else True


def test_copies_of_test_samples_are_an_error_and_can_be_dropped(data, tmp_path):
    arguments = {**QUICK, "recipes": [MAE], "seeds": 1, "label_budget": (20,)}
    leaky = write_digits(tmp_path, "leaky.npz", 310, 400)
    with pytest.raises(DataError, match="copies of test samples"):
        compare(data["source"], train=data["train"], test=leaky, out=tmp_path / "a", **arguments)
    result = compare(data["source"], train=data["train"], test=leaky, out=tmp_path / "b", leaks="drop", **arguments)
    assert result["test_samples"] <= 80


def test_a_folder_that_holds_something_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(UsageError, match="holds no tournament"):
        run(data, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
