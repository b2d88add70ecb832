from __future__ import annotations

import inspect
import math

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.train import settings
from osteon.train.settings import default_precision, resolve_settings


def resolve(wishes=None, recipe=None, samples=1000, kind="tokens"):
    return resolve_settings({"precision": "32", **(wishes or {})}, recipe or {}, samples, kind=kind)


def test_a_wish_stands_above_the_recipe_and_the_recipe_above_the_default():
    recipe = {"optimizer": "lars", "weight_decay": 0.1, "warmup": 0.2}
    got, _ = resolve({"weight_decay": 0.3, "warmup": None}, recipe)
    assert (got.optimizer, got.weight_decay, got.warmup, got.schedule) == ("lars", 0.3, 0.2, "cosine")


@pytest.mark.parametrize(("samples", "batch"), [(2, 2), (3, 2), (4, 2), (8, 2), (31, 4), (32, 8), (1000, 128),
                                                (1024, 256), (10**6, 256)])
def test_the_automatic_batch_leaves_four_steps_an_epoch_where_it_can(samples, batch):
    got, notes = resolve({}, {}, samples)
    assert got.batch_size == batch and samples // batch >= min(4, samples // 2)
    assert notes[0].startswith(f"batch_size={batch}:")


def test_epochs_become_steps_of_whole_batches():
    got, notes = resolve({"epochs": 2.5, "batch_size": 100}, {}, 1099)  # 10 whole batches an epoch
    assert got.steps == 25 and "steps=25: 2.5 epochs of 10 steps" in notes
    assert resolve({"epochs": 1e-6, "batch_size": 100}, {}, 1099)[0].steps == 1
    assert resolve({"batch_size": 100}, {}, 1099)[0].steps == 1000  # 100 epochs
    assert resolve({"batch_size": 2}, {}, 1099)[0].steps == 10_000  # at most


@pytest.mark.parametrize(("recipe", "lr"), [
    ({"lr": 0.3, "lr_per": 256}, 0.15), ({"lr": 0.3, "lr_per": 512, "lr_rule": "sqrt"}, 0.15), ({"lr": 0.3}, 0.3),
    ({}, 1e-3)])
def test_the_rate_is_scaled_as_the_recipe_says_unless_it_is_given(recipe, lr):
    assert resolve({"batch_size": 128}, recipe)[0].lr == pytest.approx(lr)
    assert resolve({"batch_size": 128, "lr": 0.7}, recipe)[0].lr == 0.7


def test_a_rate_published_for_another_batch_is_scaled_by_the_recipes_rule():
    sqrt, linear = {"lr": 0.3, "lr_per": 256, "lr_rule": "sqrt"}, {"lr": 0.3, "lr_per": 256}
    asked = {"batch_size": 512, "lr": 8e-3, "lr_per": 2048}
    assert resolve(asked, sqrt)[0].lr == pytest.approx(4e-3) and resolve(asked, linear)[0].lr == pytest.approx(2e-3)
    told = resolve(asked, sqrt)[1]
    assert "lr=0.004: the given 0.008 for batch 2048, scaled with the square root of the batch" in told
    for wrong in ({"lr_per": 2048}, {"lr": 1e-3, "lr_per": 0}):
        with pytest.raises(UsageError, match="lr_per"):
            resolve(wrong, sqrt)


def test_the_automatic_batch_holds_every_image_as_often_as_it_is_repeated():
    got, notes = resolve({"repeats": 3})
    assert got.batch_size == 126 and notes[0].endswith("less what does not divide by repeats=3")
    assert resolve({"repeats": 4})[0].batch_size == 128


def test_every_automatic_choice_is_told_and_no_wish_is():
    asked = {"batch_size": 10, "steps": 5, "lr": 0.1, "channels_last": False, "precision": "32"}
    assert resolve_settings(asked, {"lr": 0.3, "lr_per": 256}, 100, kind="maps")[1] == []
    told = resolve_settings({}, {"lr": 0.3, "lr_per": 256}, 100, kind="maps")[1]
    assert [text.split("=")[0].split(":")[0] for text in told] == ["batch_size", "steps", "lr", "precision",
                                                                   "channels_last"]


def test_values_from_the_shell_get_their_types():
    got, _ = resolve({"lr": "1e-3", "betas": [0.8, 0.9], "log_every": 5, "precision": 32, "collapse_stop": "false",
                      "steps": "7", "clip": 1})
    assert (got.lr, got.betas, got.log_every, got.precision, got.collapse_stop, got.steps, got.clip) == (
        1e-3, (0.8, 0.9), 5, "32", False, 7, 1.0)
    assert resolve({"precision": "bf16-mixed"})[0].precision == "bf16"


@pytest.mark.parametrize(("wishes", "named"), [
    ({"batchsize": 3}, "Did you mean 'batch_size'"), ({"optimizer": "adamm"}, "Did you mean 'adam"),
    ({"schedule": "cosin"}, "'cosine'"), ({"precision": "16"}, "precision"), ({"steps": 0}, "steps"),
    ({"steps": 3, "epochs": 2}, "not both"), ({"epochs": 0}, "epochs"), ({"epochs": -1}, "epochs"),
    ({"epochs": math.inf}, "epochs"), ({"batch_size": 0}, "batch_size"), ({"batch_size": 1001}, "1000 samples"),
    ({"batch_size": 10, "accumulate": 3}, "accumulate=3"), ({"accumulate": 0}, "accumulate"),
    ({"log_every": 0}, "log_every"), ({"monitor_every": 0}, "monitor_every"), ({"checkpoint_every": 0}, "checkpoint"),
    ({"lr": "fast"}, "lr"), ({"lr": -1.0}, "lr"), ({"lr": math.nan}, "lr"), ({"warmup": 2.0}, "warmup"),
    ({"clip": -1.0}, "clip"), ({"layer_decay": 1.5}, "layer_decay"), ({"betas": [0.9]}, "betas"),
    ({"steps": 1.5}, "steps"), ({"channels_last": 3}, "channels_last"), ({"compiling": True}, "compiling")])
def test_impossible_settings_are_refused_by_name(wishes, named):
    with pytest.raises(UsageError, match=named):
        resolve(wishes)


@pytest.mark.parametrize("samples", [0, 1])
def test_one_sample_is_too_few(samples):
    with pytest.raises(UsageError, match="at least 2 samples"):
        resolve({}, {}, samples)


def test_precision_by_hardware_and_kind(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for native, kind, wanted in ((True, "maps", "bf16"), (True, "tokens", "32"), (False, "maps", "32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert default_precision(kind)[0] == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, wanted in ((True, "bf16"), (False, "32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert default_precision("tokens")[0] == wanted


def test_every_setting_is_documented():
    for name in settings.TrainSettings.__dataclass_fields__:
        assert f"\n    {name}: " in inspect.cleandoc(settings.TrainSettings.__doc__ or "")
