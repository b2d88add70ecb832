"""Numbers to be predicted, from pre-training to the report: evaluate, adapt and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset, open_source
from osteon.objectives.supervised import Supervised
from osteon.parts.regression import R2, qualities, score_numbers
from osteon.parts.types import DataSpec, Step
from osteon.verbs import _networks
from osteon.verbs._adapt_store import load_adapted
from osteon.verbs._arms import Arm, errors_of, make_task
from osteon.verbs._verdict import judge
from osteon.verbs.adapt import adapt, predict
from osteon.verbs.adapt import summary as adapted
from osteon.verbs.evaluate import evaluate, summary
from osteon.verbs.pretrain import pretrain


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train here: starting processes costs seconds; the result is the same."""
    monkeypatch.setattr(_networks, "cores", lambda: 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of digits whose target is a linear map of their mean grey, around 1000, and a run on others."""
    folder = tmp_path_factory.mktemp("weights")
    digits = open_source("digits")
    weight = 1000 + 2.0 * (digits.images.reshape(len(digits), -1).mean(1) - 60)
    out = {}
    for name, rows in (("rest", slice(0, 64)), ("train", slice(100, 300)), ("test", slice(300, 400))):
        out[name] = folder / f"{name}.npz"
        np.savez(out[name], image=digits.images[rows].transpose(0, 2, 3, 1), label=weight[rows])
    out["run"] = pretrain(out["rest"], out=folder / "run", objective="simclr", backbone="resnet_tiny", steps=2,
                          batch_size=16, progress=False, report=False, settings={"precision": "32"})
    return out


def test_the_whole_of_evaluate_on_pictures_with_a_number(places, tmp_path):
    result = evaluate(places["run"], train=places["train"], test=places["test"], label_budget="10,all", seeds=2,
                      scratch_steps=2, leaks="allow", out=tmp_path, progress=False)
    assert result["metric"] == R2 and result["classes"] == 0 and result["support"] == {}
    assert any("left out of --metrics" in n and "ncm" in n for n in result["notes"])
    arms = {(a["name"], a["budget"]): a for a in result["arms"]}
    raw, scratch = arms["raw pixels + linear_probe", "all"], arms["resnet_tiny from scratch", "all"]
    assert raw["mean"] > 0.95  # the mean grey is a linear map of the pixels
    assert {n for n, _ in arms} == {f"{s} + {e}" for s in ("simclr", "raw pixels", "image statistics",
                                                         "untrained resnet_tiny") for e in ("knn", "linear_probe")} \
        | {"resnet_tiny from scratch"}
    assert scratch["mean"] < 0.9 and scratch["rmse"] > raw["rmse"] > 0
    for a in arms.values():
        assert a["low"] <= a["mean"] <= a["high"] <= 1 and a["mean"] == pytest.approx(a["r2"])
        assert a["mae_low"] <= a["mae"] <= a["mae_high"] and a["rmse_low"] <= a["rmse"] <= a["rmse_high"]
    y = open_source(places["test"]).targets
    assert result["target"]["deviation"] == pytest.approx(y.std()) and result["target"]["lowest"] == y.min()
    assert json.loads((tmp_path / "evaluation.json").read_text())["arms"] == result["arms"]
    told = summary(result)
    assert told.startswith("R2 ") and " of R2 [" in told and "RMSE" in told and "points" not in told
    page = Path(result["report"]).read_text()
    assert "MAE" in page and "Targets of the test samples" in page and "R2" in page
    assert f">{raw['mean']:.3f}".rstrip("0") in page  # as a number, not in per cent


def test_what_cannot_be_told_apart_or_predicted_is_refused(places, tmp_path):
    usual: dict[str, Any] = {"train": places["train"], "test": places["test"], "seeds": 1, "scratch_steps": 0,
                             "out": tmp_path / "e", "progress": False}
    with pytest.raises(UsageError, match="ncm, few_shot tell classes apart"):
        evaluate(places["run"], **{**usual, "metrics": "ncm,few_shot"})
    np.savez(tmp_path / "flat.npz", image=np.random.default_rng(0).integers(0, 255, (30, 8, 8), np.uint8),
             label=np.full(30, 2.5))
    with pytest.raises(DataError, match="target 2.5: there is nothing to predict.*--test"):
        evaluate(places["run"], **{**usual, "test": tmp_path / "flat.npz"})
    with pytest.raises(DataError, match="nothing to predict.*--train"):
        evaluate(places["run"], **{**usual, "train": tmp_path / "flat.npz", "task": "regression"})
    with pytest.raises(UsageError, match="learns from labels; those of this source are numbers"):
        pretrain(places["train"], out=tmp_path / "r", objective="supervised", steps=1, progress=False)
    assert not (tmp_path / "e" / "evaluation.json").exists()


def test_budgets_cover_the_range_and_draws_lie_within_one_another():
    task = numbers(200)
    for draw in task.subsets[0]:
        ten, every = draw
        assert set(ten) <= set(every) and not set(every) & set(task.held_out)
        assert np.ptp(task.train_y[ten]) > 0.7 * np.ptp(task.train_y)  # a tenth of the range each
    spec = task.spec_of(task.train.spec, task.subsets[0][0][0])
    shown = task.train_y[task.subsets[0][0][0]]
    assert spec.target == pytest.approx((shown.mean(), shown.std())) and spec.outputs == 1  # of what is shown alone


def numbers(count: int) -> Any:
    rng = np.random.default_rng(0)
    parts = []
    for n in (count, 50):
        data = Dataset.from_arrays(rng.integers(0, 255, (n, 1, 4, 4), np.uint8))
        data.targets = rng.uniform(0, 100, n)
        parts.append(data)
    return make_task(*parts, budgets=[10, "all"], seeds=2)


def arm(name: str, kind: str, error: float, y: np.ndarray, seed: int) -> Arm:
    told = y + error * np.random.default_rng(seed).normal(size=(2, len(y)))
    q = qualities((told - y)**2, y)
    return Arm(name, kind, name, "e", "all", q, float(q.mean()), targets=y, absolute=np.abs(told - y))


@pytest.mark.parametrize(("ours", "control", "answer"), [(2.0, 6.0, "pays"), (6.0, 2.0, "does not pay"),
                                                         (6.0, 6.0, "cannot tell")])
def test_the_verdict_has_the_sign_right(ours, control, answer):
    y = np.random.default_rng(0).normal(50, 10, 60)
    found = judge([arm("ours", "pretrained", ours, y, 1), arm("raw", "control", control, y, 2)], R2)
    assert found["answer"] == answer
    mean = found["numbers"]["budgets"][0]["mean"]
    assert answer == "cannot tell" or (mean > 0) == (answer == "pays")
    assert f"{mean:+.3f} of R2 [" in found["sentence"]


def test_errors_have_the_intervals_of_their_unit():
    y = np.random.default_rng(0).normal(50, 10, 200)
    one = arm("ours", "pretrained", 4.0, y, 1)
    ends, rmse = errors_of(one), float(np.mean((1 - one.quality) * y.var()))**0.5
    assert 3 < ends["rmse_low"] < rmse < ends["rmse_high"] < 5
    assert ends["mae_low"] < one.absolute.mean() < ends["mae_high"] < 4  # the mean absolute is 0.8 of the deviation
    assert errors_of(Arm("a", "control", "a", "e", "all", np.ones((1, 3)), 1.0)) == {}



def test_supervised_training_learns_deviations_and_answers_in_the_unit():
    import torch

    from osteon.backbones import build_backbone

    torch.manual_seed(0)
    spec = DataSpec("image", 1, 8, (0.5,), (0.3,), target=(1000.0, 25.0))
    method = Supervised(build_backbone("resnet_tiny", channels=1, size=8), spec, augment="none")
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.fill_(2.0)
    assert method.eval().predict(x).tolist() == [1050.0] * 6
    key, learned = _networks.labels_for(np.array([1000.0, 1050.0]), spec)
    assert (key, learned.tolist(), learned.dtype) == ("target", [0.0, 2.0], torch.float32)
    encoded = {"logits": torch.tensor([[1.0], [3.0]]), "targets": torch.tensor([[0.0], [1.0]])}
    assert float(method.score(encoded, Step(0, 1, 0)).total) == pytest.approx((1 + 4) / 2)
    for option in ({"smoothing": 0.1}, {"loss": "ce"}, {"mixup": 0.2}, {"weighting": "auto"}):
        with pytest.raises(UsageError, match="shares of classes"):
            Supervised(build_backbone("resnet_tiny", channels=1, size=8), spec, **option)


@pytest.mark.parametrize("adapter", ["linear", "full", "lora"])
def test_adapters_predict_numbers_and_keep_their_scale(places, tmp_path, adapter):
    out = adapt(places["run"], train=places["train"], val=places["test"], adapter=adapter, out=tmp_path / adapter,
                steps=60 if adapter == "full" else 2, lr=1e-2 if adapter == "full" else None, batch_size=32,
                label_budget=150, progress=False, settings={"augment": "none", "precision": "32"})
    found = json.loads((out / "adaptation.json").read_text())
    blind = found["controls"]["mean of the training targets"]["r2"]["value"]
    assert blind <= 1e-9 and "mean of the training targets" in (out / "report.html").read_text(encoding="utf-8")
    trained, val = load_adapted(out), open_source(places["test"])
    train = open_source(places["train"])
    assert trained.spec.target is not None and trained.spec.outputs == 1
    mean, deviation = trained.spec.target
    assert mean == pytest.approx(train.targets.mean(), rel=0.02) and mean != train.targets.mean()  # of 150 of 200
    assert deviation == pytest.approx(train.targets.std(), rel=0.2)
    told = predict(trained.adapter, val, trained.spec)
    assert score_numbers(told, val.targets) == pytest.approx(found["scores"]["values"], rel=1e-4)
    assert told.shape == (100,) and abs(told.mean() - 1000) < 100
    if adapter == "full":
        assert found["scores"]["values"]["r2"] > 0.5
    ends = found["scores"]["intervals"]
    assert set(ends) == {"r2", "mae", "rmse"} and all(v["low"] <= v["value"] <= v["high"] for v in ends.values())
    assert "rmse:" in adapted(out) and "%" not in adapted(out).split("rmse:")[1].splitlines()[0]


def test_a_tournament_ranks_keeps_and_prices_numbers(tmp_path):
    from osteon.verbs._tournament_jobs import validate
    from osteon.verbs._tournament_kit import load_arms, save_arms
    from osteon.verbs._tournament_plan import _with_label, check_wish

    task = numbers(60)
    seen = validate(task.train_y[:, None] * np.array([1.0, 2.0]), task, ["linear_probe", "knn"], 0)
    assert seen["linear_probe"]["all"] > 0.99 > seen["knn"]["10"]
    y = np.arange(30.0)
    arms = [arm("ours", "pretrained", 1.0, y, 1), Arm("old", "control", "old", "e", 10, np.ones((1, 4)), 0.5)]
    again = load_arms(tmp_path / "a.npz", json.loads(json.dumps(save_arms(tmp_path / "a.npz", arms))))
    assert errors_of(again[0]) == errors_of(arms[0]) and again[1].targets is None and again[1].budget == 10
    (tmp_path / "t.csv").write_text("a,b,price\n" + "".join(f"{i % 7}.5,{i},{i}.25\n" for i in range(24)))
    usual: dict[str, Any] = {"train": "t", "test": "t", "recipes": "mae", "budget": "9steps", "seeds": 1, "trials": 1,
                             "metrics": ("knn",), "label_budget": ("all",), "public": (), "control": (), "settings": {},
                             "finalists": 1, "leaks": "error"}
    wish = check_wish(tmp_path / "t.csv", **usual, target="price")
    assert _with_label(wish).settings == {"label": "price"}  # no input of pre-training
    with pytest.raises(UsageError, match="Did you mean 'regression'"):
        check_wish("t", **usual, task="regressoin")
