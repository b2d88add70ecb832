"""The family contract of objectives on every other modality they claim, on that modality's generated source."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.run import RunFolder
from osteon.data import Dataset, open_source
from osteon.data.codec import codec, named_sources
from osteon.data.image import CODEC as IMAGE
from osteon.modalities import NAMES, find
from osteon.parts.objective import Objective
from osteon.parts.types import Draws, Step
from osteon.train.loop import Engine, train
from osteon.train.settings import TrainSettings, resolve_settings
from tests.contracts.objective_kit import assert_same_gradient, remove_batchnorm, weights

#: fewer tokens, for speed
SMALL = {"sound": {"patch": 8}}
#: smaller samples, for speed
READ: dict[str, dict[str, int]] = {"video": {"frames": 8, "size": 16}}
#: how single objectives need samples to be read
READ_BY: dict[str, dict[str, Any]] = {"unitabe": {"names": "units"}}
OTHERS = [name for name in NAMES if name != "image"]
EVERY = pytest.mark.parametrize(("name", "modality"), [
    (card.name, modality) for card in registry.cards(kind="objective") for modality in OTHERS
    if registry.fits(card, modality)], ids=lambda v: v)


def embedded(modality: str) -> str:
    """The first source of a modality that is generated or embedded."""
    return next(iter(named_sources(modality)))


def samples(modality: str, name: str = "") -> Dataset:
    """160 samples with labels, as an objective reads them."""
    return read(modality, name if name in READ_BY else "")


@functools.cache
def read(modality: str, name: str) -> Dataset:
    whole = open_source(f"{embedded(modality)}:train", cache=False, **READ.get(modality, {}), **READ_BY.get(name, {}))
    return whole.subset(np.arange(160))


def make(name: str, modality: str, *, seed: int = 0, batchnorm: bool = True) -> Objective:
    spec = samples(modality, name).spec
    torch.manual_seed(seed)
    options = {**find(modality).backbone_options(spec), **SMALL.get(modality, {})}
    kinds = registry.find("objective", name).backbones
    kind = next(network for family, network in (("tokens", "vit_tiny"), ("towers", "towers"), ("nodes", "gcn_tiny"),
                                                ("maps", "resnet_tiny")) if family in kinds)
    small: dict[str, Any] = {"vit_tiny": {"dim": 32, "depth": 2, "heads": 2}, "towers": {"encoder": "vit_tiny"},
                             "gcn_tiny": {"dim": 32, "depth": 2, "heads": 2},
                             "resnet_tiny": {"depths": (1, 1), "widths": (8, 16), "stride": 4}}[kind]
    network = build_backbone(kind, channels=spec.channels, size=spec.extent, **small, **options)
    method: Objective = registry.build("objective", name, network, spec)
    if not batchnorm:
        remove_batchnorm(method)
    return method


def settings(method: Objective, **wishes: object) -> TrainSettings:
    asked = {"steps": 6, "batch_size": 16, "seed": 3, "precision": "32", "checkpoint_every": 3, "log_every": 1,
             "monitor_every": 2, "warmup": 0.0, **wishes}
    return resolve_settings(asked, method.recipe, 160, kind=method.backbone.kind)[0]


def engine(method: Objective, **wishes: object) -> Engine:
    return Engine(method.train(), settings(method, **wishes), Fabric(accelerator="cpu", devices=1))


def test_every_modality_has_its_parts():
    for modality in NAMES:
        module, reader = find(modality), codec(modality)
        assert module.SAMPLES and module.CONTROLS and reader.rules
        assert embedded(modality)
    assert IMAGE is codec("image")


@pytest.mark.parametrize("modality", OTHERS)
def test_controls_and_pictures_are_finite_and_row_for_row(modality):
    data = samples(modality)
    train, test = np.asarray(data.images[:100]), np.asarray(data.images[100:])
    for name, control in find(modality).CONTROLS.items():
        first, second = control(train, test, data.spec)
        assert len(first) == 100 and len(second) == 60 and first.shape[1] == second.shape[1], name
        assert np.isfinite(first).all() and np.isfinite(second).all(), name
        fewer = control(train, test[:7], data.spec)[1]
        np.testing.assert_allclose(fewer, second[:7], rtol=1e-5, atol=1e-6, err_msg=f"{name} looks at other test rows")
    pictures = find(modality).picture(test[:5].astype(np.float32) / data.spec.scale, data.spec)
    assert pictures.dtype == np.uint8 and pictures.shape[0] == 5 and pictures.shape[3] == 3
    assert len(np.unique(pictures)) > 1


@EVERY
def test_gradient_reaches_every_trainable_parameter_and_no_companion(name, modality):
    method = make(name, modality)
    work, reached = engine(method, steps=8), set()
    for index in range(6):
        work.run(samples(modality, name).batch(np.arange(16 * index, 16 * index + 16)), Step(index, 8, 3))
        reached |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n for n, p in method.named_parameters() if p.requires_grad} - reached == set()
    for companion in method.companions():
        assert all(p.grad is None and not p.requires_grad for p in companion.parameters())


@EVERY
def test_rows_do_not_depend_on_who_else_is_local(name, modality):
    method = make(name, modality, batchnorm=False).train()
    whole, step = samples(modality, name).batch(np.arange(12)), Step(2, 10, 5)

    def encode(rows):
        draws = Draws(step, torch.arange(12)[rows], 12, source=lambda key, at: whole[key][at])
        torch.manual_seed(0)
        with torch.no_grad():
            return method.encode({k: v[rows] for k, v in whole.items()}, draws)

    together, first, second = encode(slice(0, 12)), encode(slice(0, 5)), encode(slice(5, 12))
    for key, value in together.items():
        torch.testing.assert_close(torch.cat([first[key], second[key]]), value, atol=2e-5, rtol=1e-4)


@EVERY
def test_accumulation_gives_the_gradient_of_the_whole_batch(name, modality):
    gradients = []
    for accumulate in (1, 3):
        method = make(name, modality, batchnorm=False)
        engine(method, batch_size=24, accumulate=accumulate).gradients(samples(modality, name).batch(np.arange(24)),
                                                                       Step(1, 6, 3))
        gradients.append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
    assert_same_gradient(gradients[1], gradients[0])


@EVERY
def test_same_seed_same_weights_and_an_interrupted_run_ends_the_same(name, modality, tmp_path):
    class Killed(Exception):
        """Stands for the power going off between two steps."""

    def stop(done, _values):
        if done == 4:
            raise Killed

    def go(method, path, watch=lambda _done, _values: None):
        run = RunFolder(path)
        with run.lock():
            train(method, samples(modality, name), run, settings(method), fabric=Fabric(accelerator="cpu", devices=1),
                  watch=watch, say=lambda _text: None)

    first, second, again = make(name, modality), make(name, modality), make(name, modality, seed=99)
    go(first, tmp_path / "a")
    with pytest.raises(Killed):
        go(second, tmp_path / "b", stop)
    go(again, tmp_path / "b")
    want, got = weights(first), weights(again)
    assert all(torch.equal(value, got[key]) for key, value in want.items())


@EVERY
def test_training_lowers_the_loss(name, modality):
    data, losses, method = samples(modality, name).batch(np.arange(32)), [], make(name, modality)
    work = engine(method, steps=60, batch_size=32, lr=2e-3, optimizer="adamw", clip=3.0, schedule="constant")
    for index in range(45):
        losses.append(float(work.run(data, Step(index, 60, 0))[0].total))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[3:8]), losses
