from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.objectives._around import hidden
from osteon.objectives.self_distilled import SelfDistilled, distance
from osteon.parts.low_rank import train_low_rank
from osteon.parts.types import DataSpec, Draws, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._model import save_trained

SPEC = DataSpec("image", 3, 16, (0.5,) * 3, (0.25,) * 3, num_classes=4)


def network(name="vit_tiny", seed=0):
    torch.manual_seed(seed)
    return build_backbone(name, channels=3, size=16)


def batch(rows=8):
    images = np.random.default_rng(0).integers(0, 256, (rows, 3, 16, 16), dtype=np.uint8)
    return {**Dataset.from_arrays(images).batch(np.arange(rows)), "label": torch.arange(rows) % 4}


def teach(folder, backbone):
    """A run folder with a backbone's weights, moved."""
    moved = copy.deepcopy(backbone)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.1)
    run = RunFolder(folder)
    with run.lock():
        run.create_or_resume({})
        save_trained(run, moved, SPEC, {})
    return moved


def engine(method, steps=3):
    settings, _ = resolve_settings({"batch_size": 8, "steps": steps, "precision": "32"}, method.recipe, 100,
                                   kind=method.backbone.kind)
    return Engine(method.train(), settings, make_fabric("32"))


def test_the_distance_is_summed_over_dimensions_and_averaged_over_samples():
    """(1 + 4) and (9 + 0): mean 7."""
    assert float(distance(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 2))) == 7.0


def test_the_loss_is_the_tasks_plus_the_weighted_distance(tmp_path):
    """At step 0 student and teacher differ by what the first pass moved; both see the task's view, whole."""
    backbone = network()
    moved = teach(tmp_path / "first", backbone)
    plain = registry.build("objective", "mae", copy.deepcopy(backbone), SPEC)
    method = SelfDistilled(backbone, SPEC, teacher=str(tmp_path / "first"), weight=0.3)
    method.inner.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("backbone.")})
    x, step = batch(), Step(1, 5, 3)
    view = plain.views(x["image"], Draws.of(x, step))[0].x
    with torch.no_grad():
        apart = (hidden(backbone(view)) - hidden(moved.eval()(view))).square().sum(1).mean()
        torch.manual_seed(0)
        wanted = plain(x, step).total + 0.3 * apart
        torch.manual_seed(0)
        found = method(x, step)
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.parts["distance"], apart)


def test_at_weight_zero_it_is_plain_continuation():
    """Bit for bit, also with BatchNorm, whose statistics the second pass would move."""
    def weights(name, task, distilled):
        backbone = network(name)
        torch.manual_seed(1)
        method = (SelfDistilled(backbone, SPEC, task=task, weight=0.0) if distilled
                  else registry.build("objective", task, backbone, SPEC))
        work = engine(method)
        for index in range(3):
            work.run(batch(), Step(index, 3, 0))
        return torch.cat([v.float().flatten() for v in backbone.state_dict().values()])

    for name, task in (("vit_tiny", "mae"), ("resnet_tiny", "simclr")):
        assert torch.equal(weights(name, task, True), weights(name, task, False))


def test_the_student_starts_from_the_initial_weights_and_the_teacher_never_moves(tmp_path):
    backbone = network()
    start = copy.deepcopy(backbone.state_dict())
    moved = teach(tmp_path / "first", backbone)
    method = SelfDistilled(backbone, SPEC, teacher=str(tmp_path / "first"))
    assert all(torch.equal(v, start[k]) for k, v in method.backbone.state_dict().items())
    work = engine(method)
    for index in range(3):
        work.run(batch(), Step(index, 3, 0))
    assert all(torch.equal(v, moved.state_dict()[k]) for k, v in method.teacher.state_dict().items())
    assert not method.teacher.training and not any(p.requires_grad for p in method.teacher.parameters())
    assert not torch.equal(method.backbone.state_dict()["norm.weight"], start["norm.weight"])


def test_a_heavier_weight_ends_nearer_the_teacher():
    """Held to where it starts: with growing weight the features move less."""
    def moved(weight):
        method = SelfDistilled(network(), SPEC, task="simclr", weight=weight)
        work = engine(method, steps=6)
        for index in range(6):
            work.run(batch(), Step(index, 6, 0))
        x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(distance(method.backbone.eval()(x).pooled, method.teacher(x).pooled))

    assert moved(0.0) > 1.5 * moved(1.0)


@pytest.mark.parametrize("name", sorted({c.name for c in registry.cards("objective", "image")}
                                        - {"self_distilled", "guidance"}))
@pytest.mark.parametrize("low_rank", [0, 2])
def test_every_objective_goes_on_held(name, low_rank):
    """Also with low-rank changes: something trains, its gradient is finite, and what is frozen stays."""
    card = registry.find("objective", name)
    backbone = network("vit_tiny" if "tokens" in card.backbones else "resnet_tiny")
    if low_rank:
        train_low_rank(backbone, low_rank)
    method = SelfDistilled(backbone, SPEC, task=name)
    frozen = {k: p.clone() for k, p in backbone.named_parameters() if not p.requires_grad}
    work = engine(method, steps=2)
    for index in range(2):
        loss, _, norm = work.run(batch(), Step(index, 2, 0))
        assert np.isfinite(norm) and norm > 0 and torch.isfinite(loss.total)
    assert float(loss.parts["distance"]) > 0
    assert all(torch.equal(p, dict(backbone.named_parameters())[k]) for k, p in frozen.items())


def test_a_teacher_of_the_plain_network_fits_one_with_low_rank_changes(tmp_path):
    backbone = network()
    moved = teach(tmp_path / "first", backbone)
    train_low_rank(backbone, 2)
    method = SelfDistilled(backbone, SPEC, teacher=str(tmp_path / "first"))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(method.teacher(x).pooled, moved.eval()(x).pooled)


def test_mistakes(tmp_path):
    with pytest.raises(UsageError, match="weight"):
        SelfDistilled(network(), SPEC, weight=-1.0)
    teach(tmp_path / "other", network("resnet_tiny"))
    with pytest.raises(UsageError, match=r"teacher is a resnet_tiny"):
        SelfDistilled(network(), SPEC, teacher=str(tmp_path / "other"))
    torch.manual_seed(0)
    teach(tmp_path / "deeper", build_backbone("vit_tiny", channels=3, size=16, depth=2))
    with pytest.raises(UsageError, match="not those of the student"):
        SelfDistilled(network(), SPEC, teacher=str(tmp_path / "deeper"))
