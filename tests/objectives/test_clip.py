"""CLIP on sets: which pairs count, the learned scale, what is exported."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.sets_kit import batch, draws, network, numbers, sphere

from osteon.core.errors import UsageError
from osteon.objectives.clip import CLIP
from osteon.parts.pairs import symmetric_nce
from osteon.parts.types import Step

STEP = Step(0, 10, 3)


def make(**options) -> CLIP:
    return CLIP(network(), numbers().spec, joint=16, **options)


def encoded(there):
    return {"z": sphere(len(there), 3, 16), "there": torch.tensor(there, dtype=torch.float32)}


def test_the_loss_is_the_mean_over_pairs_of_the_sets_that_have_both():
    objective = make()
    e = encoded([[1, 1, 1]] * 5 + [[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    z, rows = e["z"], {(0, 1): [0, 1, 2, 3, 4, 5], (0, 2): [0, 1, 2, 3, 4], (1, 2): [0, 1, 2, 3, 4, 6]}
    want = sum(symmetric_nce(z[r, a], z[r, b], 1 / 0.07) for (a, b), r in rows.items()) / 3
    torch.testing.assert_close(objective.score(e, STEP).total, want)


def test_a_pair_nobody_has_is_skipped_and_gradient_is_finite():
    objective = make()
    e = encoded([[1, 1, 0]] * 6)
    e["z"].requires_grad_()
    loss = objective.score(e, STEP)
    assert list(loss.parts) == ["image-sound"]
    torch.testing.assert_close(loss.total, symmetric_nce(e["z"][:, 0], e["z"][:, 1], 1 / 0.07) / 3)
    loss.total.backward()
    assert e["z"].grad.isfinite().all() and not e["z"].grad[:, 2].any()
    assert objective.score(encoded([[1, 0, 0]] * 3), STEP).total == 0


def test_each_pair_learns_its_scale_which_stays_at_most_100():
    objective = make()
    assert objective.log_scale.shape == (3,)
    torch.testing.assert_close(objective.log_scale.exp(), torch.full((3,), 1 / 0.07))
    with torch.no_grad():
        objective.log_scale[0] = 9.0
    e = encoded([[1, 1, 1]] * 4)
    assert float(objective.score(e, STEP).parts["image-sound"]) == pytest.approx(
        float(symmetric_nce(e["z"][:, 0], e["z"][:, 1], 100.0)), rel=1e-5)
    objective.after_step(STEP)
    assert float(objective.log_scale[0].detach()) == pytest.approx(math.log(100))


def test_the_space_is_exported_with_the_towers():
    objective = make()
    network = objective.exported()
    assert network.options["joint"] == 16 and {k for k in network.state_dict() if k.startswith("maps.")} == {
        f"maps.{n}.weight" for n in ("image", "sound", "text")}
    assert not any(k.startswith("towers") for k in objective.state_dict())


def test_encoding_is_of_the_towers_and_smoothing_reaches_the_loss():
    objective = make(label_smoothing=0.1)
    e = objective.encode(batch(), draws())
    assert e["z"].shape == (40, 3, 16)
    torch.testing.assert_close(e["z"].norm(dim=2), e["there"])
    plain = make().score(e, STEP).total
    assert float(objective.score(e, STEP).total.detach()) != pytest.approx(float(plain.detach()))


@pytest.mark.parametrize("options", [{"temperature": 0.001}, {"label_smoothing": 1.0}])
def test_bad_options(options):
    with pytest.raises(UsageError):
        make(**options)


def test_other_backbones_are_refused():
    with pytest.raises(UsageError, match="towers"):
        CLIP(network("vit_tiny"), numbers().spec)
