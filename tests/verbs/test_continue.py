"""Going on from weights: the guard, low-rank changes and the self-distilled way, through the public verb."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from osteon import cli
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.train.guard import GuardStop
from osteon.verbs.pretrain import pretrain

COMMON = {"objective": "simclr", "batch_size": 64, "progress": False, "report": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A short run whose weights are gone on from."""
    folder = tmp_path_factory.mktemp("continue")
    before = os.environ.get("OSTEON_CACHE")
    os.environ["OSTEON_CACHE"] = str(folder / "cache")
    pretrain("digits", out=folder / "base", steps=12, backbone="resnet_tiny", settings={"limit": 500}, **COMMON)
    yield folder / "base"
    os.environ.pop("OSTEON_CACHE")
    if before is not None:
        os.environ["OSTEON_CACHE"] = before


def go_on(base, out, *, steps=6, settings=None, **options):
    return pretrain("digits", out=out, init=base, steps=steps, **{**COMMON, **options},
                    settings={"limit": 500, "guard_every": 3, **(settings or {})})


def weights(run):
    return RunFolder(Path(run)).load_model()[0]


def scores(run, name="guard/knn"):
    return [(row["step"], row[name]) for row in RunFolder(Path(run)).metrics() if name in row]


def test_destruction_stops_and_rolls_back_to_the_best(base, tmp_path):
    """A learning rate of 100: the run leaves the very weights it started from, and says so each time it is called."""
    for _ in range(2):
        with pytest.raises(GuardStop, match=r"score fell.*rolled back to its best checkpoint, step 0") as caught:
            go_on(base, tmp_path / "bad", settings={"lr": 100.0, "warmup": 0.0})
        assert caught.value.code == 4
        state, meta = RunFolder(tmp_path / "bad").load_model()
        assert meta["steps"] == 0 and all(torch.equal(v, state[k]) for k, v in weights(base).items())
    seen = scores(tmp_path / "bad")
    assert [step for step, _ in seen] == [0, 3] and seen[1][1] < seen[0][1] - 0.05
    assert RunFolder(tmp_path / "bad").latest_checkpoint()[0] == 3
    with pytest.raises(SystemExit) as leaving:
        cli.main(["pretrain", "digits", "--out", str(tmp_path / "bad"), "--init", str(base), "--steps", "6",
                  "--objective", "simclr", "--batch-size", "64", "--set", "limit=500", "--set", "guard_every=3",
                  "--set", "lr=100", "--set", "warmup=0", "-q"])
    assert leaving.value.code == 4


def test_a_harmless_run_ends_and_the_guard_changes_nothing_in_it(base, tmp_path):
    go_on(base, tmp_path / "with", settings={"lr": 1e-4})
    go_on(base, tmp_path / "without", settings={"lr": 1e-4, "guard": False})
    assert [step for step, _ in scores(tmp_path / "with")] == [0, 3, 6] and scores(tmp_path / "without") == []
    other = weights(tmp_path / "without")
    assert all(torch.equal(v, other[k]) for k, v in weights(tmp_path / "with").items())
    first = RunFolder(tmp_path / "with").metrics()[0]
    assert first["step"] == 0 and first["guard/knn_low"] < first["guard/knn"] < first["guard/knn_high"]


def test_a_paused_run_goes_on_to_the_same_weights_and_scores(base, tmp_path):
    go_on(base, tmp_path / "whole", settings={"lr": 1e-4})
    go_on(base, tmp_path / "paused", settings={"lr": 1e-4}, until=4)
    go_on(base, tmp_path / "paused", settings={"lr": 1e-4})
    assert scores(tmp_path / "whole") == scores(tmp_path / "paused")
    other = weights(tmp_path / "paused")
    assert all(torch.equal(v, other[k]) for k, v in weights(tmp_path / "whole").items())


def test_settings_stand_in_the_configuration_and_come_back_from_it(base, tmp_path):
    go_on(base, tmp_path / "a", settings={"low_rank": 2}, guard="digits:test", steps=3)
    stored = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert stored["continue"] == {"guard": True, "guard_every": 3, "low_rank": 2, "guard_source": "digits:test"}
    pretrain("digits", out=tmp_path / "b", config=tmp_path / "a" / "config.yaml", progress=False, report=False)
    assert yaml.safe_load((tmp_path / "b" / "config.yaml").read_text()) == stored
    other = weights(tmp_path / "b")
    assert all(torch.equal(v, other[k]) for k, v in weights(tmp_path / "a").items())


def test_low_rank_leaves_a_plain_network_that_differs_by_so_many_directions(base, tmp_path):
    go_on(base, tmp_path / "low", settings={"low_rank": 2, "lr": 0.01, "guard": False})
    before, after = weights(base), weights(tmp_path / "low")
    assert set(before) == set(after)
    changed = 0
    for name, old in before.items():
        if old.dim() == 4 and name != next(k for k in before if before[k].dim() == 4):
            values = torch.linalg.svdvals((after[name] - old).flatten(1).double())
            assert values[2] < 1e-4 * values[0] or values[0] == 0, name
            changed += bool(values[0] > 0)
        elif name.endswith(("weight", "bias")):
            assert torch.equal(after[name], old), name
    assert changed > 3


def test_self_distilled_in_two_commands(base, tmp_path):
    go_on(base, tmp_path / "first", settings={"lr": 0.01, "guard": False})
    go_on(base, tmp_path / "second", objective="self_distilled",
          settings={"task": "simclr", "teacher": str(tmp_path / "first"), "lr": 0.01, "guard": False})
    rows = [r for r in RunFolder(tmp_path / "second").metrics() if "loss/distance" in r]
    assert rows[0]["loss/distance"] > 0 and set(weights(tmp_path / "second")) == set(weights(base))


def test_without_labels_a_rank_is_recorded(base, tmp_path):
    np.save(tmp_path / "x.npy", open_source("digits", limit=300).images)
    pretrain(tmp_path / "x.npy", out=tmp_path / "r", init=base, steps=2, **COMMON)
    seen = scores(tmp_path / "r", "guard/rankme")
    assert [s for s, _ in seen] == [0, 1, 2] and all(v > 1 for _, v in seen) and scores(tmp_path / "r") == []


def test_a_run_from_random_weights_has_no_guard(tmp_path, base):
    pretrain("digits", out=tmp_path / "r", steps=2, backbone="resnet_tiny", settings={"limit": 200}, **COMMON)
    assert scores(tmp_path / "r") == [] and "continue" not in RunFolder(tmp_path / "r").config()


@pytest.mark.parametrize(("options", "words"), [
    ({"guard": "digits"}, "The guard watches"), ({"settings": {"low_rank": 2}}, "low_rank changes"),
    ({"settings": {"guard_every": -1}}, "guard_every must be 0 or more"),
    ({"settings": {"guard": "perhaps"}}, "guard"),
])
def test_what_makes_no_sense_is_refused_before_anything_is_written(base, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        pretrain("digits", out=tmp_path / "r", steps=2, **COMMON, **options)
    assert not (tmp_path / "r").exists()


def test_a_guard_needs_labels(base, tmp_path):
    np.save(tmp_path / "x.npy", open_source("digits", limit=300).images)
    with pytest.raises(UsageError, match="no labels"):
        go_on(base, tmp_path / "r", guard=str(tmp_path / "x.npy"))
