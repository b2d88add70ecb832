"""The family contract: every registered objective is held to it, because it has a card.

The long form (training to better features than the untrained network's, on real images) is `make contracts`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from osteon.core.run import RunFolder
from osteon.parts.types import Draws, Step
from osteon.train.loop import Engine, train
from osteon.train.settings import TrainSettings, resolve_settings
from tests.contracts.objective_kit import assert_same_gradient, batch, digits, make, pairs, weights

EVERY = pytest.mark.parametrize(("name", "backbone"), pairs(), ids=lambda v: v)


def settings(method, **wishes) -> TrainSettings:
    asked = {"steps": 6, "batch_size": 16, "seed": 3, "precision": "32", "checkpoint_every": 3, "log_every": 1,
             "monitor_every": 2, "warmup": 0.0, **wishes}
    return resolve_settings(asked, method.recipe, len(digits()), kind=method.backbone.kind)[0]


def engine(method, **wishes) -> Engine:
    return Engine(method.train(), settings(method, **wishes), Fabric(accelerator="cpu", devices=1))


def run_training(method, path, **wishes):
    run = RunFolder(path)
    with run.lock():
        train(method, digits(), run, settings(method, **wishes), fabric=Fabric(accelerator="cpu", devices=1),
              log=lambda step, values: run.append_metrics({"step": step, **values}), say=lambda _text: None)
    return run


@EVERY
def test_gradient_reaches_every_trainable_parameter_and_no_companion(name, backbone):
    method = make(name, backbone)
    work = engine(method, steps=8)
    reached = set()
    for index in range(6):
        work.run(batch(16, 16 * index), Step(index, 8, 3))
        reached |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {n for n, p in method.named_parameters() if p.requires_grad}
    assert wanted - reached == set()
    for companion in method.companions():
        assert all(p.grad is None and not p.requires_grad for p in companion.parameters())


@EVERY
def test_encoding_is_per_sample_and_rows_do_not_depend_on_who_else_is_local(name, backbone):
    method = make(name, backbone, batchnorm=False).train()
    whole = batch(12)
    step = Step(2, 10, 5)

    def encode(rows):
        draws = Draws(step, torch.arange(12)[rows], 12, source=lambda key, at: whole[key][at])
        torch.manual_seed(0)
        with torch.no_grad():
            return method.encode({k: v[rows] for k, v in whole.items()}, draws)

    together, first, second = encode(slice(0, 12)), encode(slice(0, 5)), encode(slice(5, 12))
    assert "features" in together and together["features"].dim() == 2 and not together["features"].requires_grad
    for key, value in together.items():
        assert value.shape[0] == 12, key
        split = torch.cat([first[key], second[key]])
        torch.testing.assert_close(split, value, atol=2e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@EVERY
def test_accumulation_gives_the_gradient_of_the_whole_batch(name, backbone):
    gradients = []
    for accumulate in (1, 3):
        method = make(name, backbone, batchnorm=False)
        work = engine(method, batch_size=24, accumulate=accumulate)
        work.gradients(batch(24), Step(1, 6, 3))
        gradients.append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert_same_gradient(gradients[1], gradients[0])


@EVERY
def test_same_seed_same_weights_and_an_interrupted_run_ends_the_same(name, backbone, tmp_path):
    first, second = make(name, backbone), make(name, backbone)
    run_training(first, tmp_path / "a")
    run = RunFolder(tmp_path / "b")

    class Killed(Exception):
        """Stands for the power going off between two steps."""

    def stop(done, _values):
        if done == 4:  # one step beyond the checkpoint: its work is lost and must be done again
            raise Killed

    with run.lock(), pytest.raises(Killed):
        train(second, digits(), run, settings(second), fabric=Fabric(accelerator="cpu", devices=1), watch=stop,
              say=lambda _text: None)
    again = make(name, backbone, seed=99)  # other initial weights: all must come from the checkpoint
    run_training(again, tmp_path / "b")
    want, got = weights(first), weights(again)
    assert want.keys() == got.keys()
    for key, value in want.items():
        assert torch.equal(value, got[key]), key


@EVERY
def test_the_loss_is_finite_and_training_lowers_it(name, backbone, monkeypatch):
    """On one batch the loss falls; where a target moves against it (TiCo's covariance), it falls once that is held."""
    data, losses = batch(32), []
    for held in (False, True):
        method = make(name, backbone)
        work = engine(method, steps=36, batch_size=32, lr=1e-3, optimizer="adamw", clip=3.0, schedule="constant")
        for index in range(3):  # fill queues and the like
            work.run(data, Step(index, 36, 0))
        if held:
            monkeypatch.setattr(method, "after_step", lambda _step: None)
        losses = [float(work.run(data, Step(12 if held else index, 36, 0))[0].total) for index in range(3, 36)]
        assert np.isfinite(losses).all()
        if np.mean(losses[-6:]) < np.mean(losses[:3]):
            return
    raise AssertionError(f"from {np.mean(losses[:3]):.3f} to {np.mean(losses[-6:]):.3f}")


@EVERY
def test_throw_away_parts_change_nothing_in_the_exported_network(name, backbone):
    method = make(name, backbone)
    work = engine(method)
    work.run(batch(16), Step(0, 6, 0))
    method.eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exported = method.exported()
    from osteon.backbones import build_backbone

    copy = build_backbone(exported.name, channels=1, size=8, **exported.options).eval()
    copy.load_state_dict(exported.state_dict())
    with torch.no_grad():
        assert torch.equal(copy(x).pooled, exported.eval()(x).pooled)
