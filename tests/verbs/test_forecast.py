from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.data.series import open_long
from osteon.parts.forecast import cut
from osteon.verbs._forecast_arms import Features, ForecastArm, Task, naive_arm, reader, ridge_arm
from osteon.verbs._model import load_head, load_trained, save_trained
from osteon.verbs.forecast import forecast, judge, summary
from osteon.verbs.pretrain import pretrain


def write_series(path, rows=600, noise=0.1, names=("a", "b")):
    """Two channels with a period of 12 under a little noise."""
    rng = np.random.default_rng(0)
    t = np.arange(rows)
    values = np.stack([5 + 2 * np.sin(2 * np.pi * t / 12), -3 + 100 * np.cos(2 * np.pi * t / 12)], 1)
    values += noise * np.array([2, 100]) * rng.standard_normal((rows, 2))
    start = np.datetime64("2020-01-01T00")
    lines = [f"date,{','.join(names)}"] + [f"{start + i},{a:.5f},{b:.5f}" for i, (a, b) in enumerate(values)]
    path.write_text("\n".join(lines) + "\n")
    return path


def save_run(folder, source, **options):
    """A run of an untrained network, which is all that forecasting reads."""
    spec = open_source(f"{source}:train", window=24, cache=False, **options).spec
    torch.manual_seed(1)
    network = build_backbone("vit_tiny", channels=spec.channels, size=spec.extent, dim=16, depth=1, heads=2, patch=4)
    run = RunFolder(folder)
    with run.lock():
        run.create_or_resume({"source": str(source)})
        save_trained(run, network, spec, {"objective": {"name": "mae", "options": {}}, "steps": 0})
    return folder


def test_arms_and_numbers_of_a_run(tmp_path):
    source = write_series(tmp_path / "x.csv")
    result = forecast(save_run(tmp_path / "run", source, independent=True), source=source, horizon=6, period=12,
                      fit_windows=150, progress=False)
    arms = {arm["name"]: arm for arm in result["arms"]}
    assert [a["kind"] for a in result["arms"]].count("pretrained") == 2 and len(arms) == 7
    assert result["windows"] == {"train": 111, "val": 39, "test": 115} and result["context"] == 24
    for arm in arms.values():
        assert 0 < arm["mse_low"] <= arm["mse"] <= arm["mse_high"] and arm["mae"] ** 2 <= arm["mse"]
        np.testing.assert_allclose(np.mean(list(arm["channel_mse"].values())), arm["mse"], rtol=1e-5)
    # noise of deviation 0.1 x 2 on a wave of deviation 2 / sqrt(2): in both channels 0.02 of the variance
    assert 0.02 < arms["linear map"]["mse"] < 0.03 < arms["seasonal naive (12)"]["mse"] < 0.05
    assert arms["last value"]["mse"] > 1
    assert arms[result["verdict"]["numbers"]["control"]]["validation"] == min(
        arm["validation"] for arm in arms.values() if arm["kind"] == "control")
    assert result["verdict"]["answer"] != "pays"  # the network was never trained
    assert json.loads((tmp_path / "run" / "forecast.json").read_text())["verdict"] == result["verdict"]
    example = result["examples"][0]
    assert len(example["context"]) == 12 and len(example["future"]) == 6 and set(example["forecasts"]) == set(arms)
    text = summary(result)
    assert text.splitlines()[-1] == result["verdict"]["sentence"] and "linear map" in text


def test_errors_are_standardised_by_the_training_part_and_a_naive_error_is_as_by_hand(tmp_path):
    source = write_series(tmp_path / "x.csv")
    result = forecast(save_run(tmp_path / "run", source), source=source, horizon=6, period="auto", fit_windows=60,
                      test_windows=40, progress=False, out=tmp_path / "out")
    assert result["period"] == 12 and (tmp_path / "out" / "forecast.json").is_file()
    raw = np.loadtxt(source, delimiter=",", skiprows=1, usecols=(1, 2))
    z = (raw - raw[:360].mean(0)) / raw[:360].std(0)
    rows = np.arange(480, 595, 3)
    assert result["windows"]["test"] == len(rows) == 39
    error = np.stack([z[r:r + 6] - z[r - 12:r - 6] for r in rows])
    arm = next(a for a in result["arms"] if a["name"].startswith("seasonal"))
    np.testing.assert_allclose(arm["mse"], (error**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(arm["mae"], np.abs(error).mean(), rtol=1e-6)
    assert result["block"] == 4  # 12 rows are four windows three rows apart


def test_features_are_those_of_the_context_alone(tmp_path):
    source = write_series(tmp_path / "x.csv")
    spec = open_source(source, window=24, independent=True, cache=False).spec
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=(24,), dim=16, depth=1, heads=2, patch=4)
    series = open_long(source, like=spec)
    rows = {part: np.array([100, 200]) for part in ("train", "val", "test")}
    task = Task(series.standardised(), rows, 24, 6)
    found = reader(network, spec, series, task, 3)
    assert found.parts["test"].shape == (2, 2, 48) and found.scaled
    window = series.values[1, 76:100]
    x = torch.tensor((window - window.mean()) / window.std(), dtype=torch.float32).view(1, 1, 24)
    with torch.no_grad():
        tokens = network(x).tokens[0]  # (6, 16)
    np.testing.assert_allclose(found.parts["test"][0, 1], tokens.view(3, 2, 16).mean(1).flatten(), atol=1e-4)
    later = series.values.copy()
    later[:, 100:] += 1000
    changed = reader(network, spec, type(series)(**{**series.__dict__, "values": later}), task, 3)
    np.testing.assert_array_equal(changed.parts["test"][0], found.parts["test"][0])


@pytest.mark.parametrize(("objective", "backbone", "options", "context"), [
    ("forecast", "ttm_tiny", {"horizon": 6, "backbone.patch": 3, "window": 24}, 18),
    ("next_patch", "gpht_tiny", {"backbone.pools": [2, 1], "backbone.patch": 2, "window": 24}, 22)])
def test_a_trained_head_forecasts_beside_the_frozen_features(tmp_path, objective, backbone, options, context):
    source = write_series(tmp_path / "x.csv")
    run = pretrain(f"{source}:train", objective=objective, backbone=backbone, out=tmp_path / "run", steps=3,
                   batch_size=8, settings={"independent": True, **options}, progress=False, report=False)
    model = load_trained(run)
    assert model.spec.extent == (context,) and model.spec.traits["norm"] == "window"
    result = forecast(run, source=source, horizon=9, period=12, fit_windows=60, test_windows=20, progress=False)
    assert result["context"] == context
    arm = next(a for a in result["arms"] if a["name"] == f"{objective} head")
    assert arm["kind"] == "pretrained"
    raw = np.loadtxt(source, delimiter=",", skiprows=1, usecols=(1, 2))
    z = (raw - raw[:360].mean(0)) / raw[:360].std(0)
    method, rows = load_head(run, model), np.arange(480, 592, 6)  # a single channel at a time, in any units
    known = torch.tensor(np.stack([z[r - context:r].T for r in rows]).reshape(-1, 1, context), dtype=torch.float32)
    guess = method.forecast(7 * known + 3, 9).numpy().reshape(-1, 2, 9)
    error = (guess - 3) / 7 - np.stack([z[r:r + 9].T for r in rows])
    np.testing.assert_allclose(arm["mse"], (error**2).mean(), rtol=1e-3)


def test_a_linear_map_learns_a_linear_rule_and_feels_no_shift():
    rng = np.random.default_rng(0)
    t = np.arange(400)
    values = np.stack([np.sin(0.3 * t), np.sin(0.3 * t + 1) + 3])
    rows = {"train": np.arange(30, 200), "val": np.arange(210, 260), "test": np.arange(300, 380)}
    arm = ridge_arm("linear map", "control", [], Task(values, rows, 20, 5))
    assert arm.squared.mean() < 1e-6 and arm.shared is not None
    moved = ridge_arm("linear map", "control", [], Task(values + 50, rows, 20, 5))
    np.testing.assert_allclose(moved.predict(np.array([3])) - 50, arm.predict(np.array([3])), atol=1e-3)
    noise = Task(rng.standard_normal((1, 400)), rows, 20, 5)
    last = naive_arm("last value", lambda x: np.repeat(x[..., -1:], 5, -1), noise)
    np.testing.assert_allclose(last.validation, np.mean([
        (noise.values[0, r:r + 5] - noise.values[0, r - 1]) ** 2 for r in rows["val"]]), rtol=1e-6)


def test_features_of_windows_with_their_own_scale_forecast_in_that_scale():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 400)) * np.exp(np.sin(np.arange(400) / 40))  # loud and quiet times
    rows = {"train": np.arange(30, 200), "val": np.arange(210, 260), "test": np.arange(300, 380)}
    task = Task(values, rows, 20, 3)
    parts = {}
    for part, at in rows.items():
        known, future = cut(values, at, 20, 3)
        parts[part] = ((future - known.mean(-1, keepdims=True)) / known.std(-1, keepdims=True)).astype(np.float32)
    told = ridge_arm("told", "pretrained", [Features(parts, scaled=True)], task)  # the answer in each window's units
    assert told.squared.mean() < 1e-6 < 0.001 < ridge_arm("x", "control", [Features(parts, scaled=False)],
                                                          task).squared.mean()
    assert told.shared


def arm(name, kind, squared, validation):
    return ForecastArm(name, kind, np.asarray(squared), np.asarray(squared), np.zeros(1), validation, lambda at: at)


def test_the_verdict_by_constructed_errors():
    rng = np.random.default_rng(1)
    base = 1 + 0.1 * rng.random(200)
    arms = [arm("linear", "control", base, 1.0), arm("bad", "control", base + 9, 5.0)]
    better = judge([*arms, arm("ours", "pretrained", 0.9 * base, 0.9), arm("b", "pretrained", 0 * base, 2.0)], 10)
    assert better["answer"] == "pays" and better["numbers"]["control"] == "linear"
    assert better["numbers"]["pretrained"] == "ours" and "+10.0 %" in better["sentence"]  # chosen on validation
    np.testing.assert_allclose(better["numbers"]["mean"], 0.1)
    worse = judge([*arms, arm("ours", "pretrained", 1.1 * base, 0.9)], 10)
    assert worse["answer"] == "does not pay" and worse["numbers"]["high"] < 0
    mixed = judge([*arms, arm("ours", "pretrained", base + np.where(np.arange(200) % 100 < 50, 0.5, -0.5), 0.9)], 10)
    assert mixed["answer"] == "cannot tell" and mixed["numbers"]["low"] < 0 < mixed["numbers"]["high"]
    few = judge([*arms, arm("ours", "pretrained", 0.5 * base, 0.9)], 50)
    assert few["answer"] == "cannot tell" and "4 independent stretches" in few["sentence"]


def test_bad_input_says_what_to_do(tmp_path):
    source = write_series(tmp_path / "x.csv")
    run = save_run(tmp_path / "run", source)
    for options, words in (({"context": 48}, "sees 24 steps"), ({"horizon": 0}, "at least 1"),
                           ({"period": "day"}, "number of steps or 'auto'"), ({"split": "x"}, "how to split")):
        with pytest.raises(UsageError, match=words):
            forecast(run, source=source, progress=False, **{"horizon": 6, **options})
    with pytest.raises(DataError, match="hold no forecast of 500"):
        forecast(run, source=source, horizon=500, progress=False)
    with pytest.raises(DataError, match="no long series"):
        forecast(run, source=f"{source}:test", progress=False)
    one = write_series(tmp_path / "y.csv", names=("a", "label"))
    one.write_text("\n".join(line.rsplit(",", 1)[0] for line in one.read_text().splitlines()))
    with pytest.raises(UsageError, match="takes 2 channels, the series has 1"):
        forecast(run, source=one, progress=False)
