"""Mixup and CutMix: targets follow pixels, and parts of the batch mix as the whole does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views
from osteon.views.mix import Mix, cutmix_box, mixup


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    """Sample i is constantly i, its target one-hot i: the mixture can be read off the pixels."""
    return torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 12, 10).contiguous(), torch.eye(n)


def draws(step: int, n: int = 8) -> Draws:
    return Draws(Step(step, 100), torch.arange(n), n)


def test_mixup_by_hand() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([3.0])
    assert mixup(a, b, torch.tensor(0.25)).item() == 2.5


def test_cutmix_box_by_hand() -> None:
    # Three quarters kept: half of each side is cut out, 4 of 8 around pixel 4.
    assert cutmix_box(8, 8, torch.tensor(0.75), torch.tensor([0.5, 0.5])) == (2, 2, 6, 6)
    assert cutmix_box(8, 8, torch.tensor(0.75), torch.tensor([0.0, 0.9])) == (0, 5, 2, 8)  # clipped at the border
    assert cutmix_box(8, 8, torch.tensor(1.0), torch.tensor([0.5, 0.5])) == (4, 4, 4, 4)


@pytest.mark.parametrize("options", [{"cutmix_alpha": 0.0, "mixup_alpha": 1.0}, {"mixup_alpha": 0.0}])
def test_targets_follow_the_pixels(options: dict[str, float]) -> None:
    x, targets = batch()
    shares = []
    for step in range(60):
        y, soft = Mix(**options)(x, targets, draws(step))
        assert torch.allclose(soft.sum(1), torch.ones(8))
        # The mean pixel is the mean class number under the mixed target.
        assert torch.allclose(y.mean((1, 2, 3)), soft @ torch.arange(8.0), atol=1e-4)
        shares.append(float(soft.diagonal().min()))
        if "cutmix_alpha" in options:
            assert torch.allclose(y.std((1, 2, 3)), torch.zeros(8), atol=1e-5)
        else:
            assert set(y.unique().tolist()) <= set(range(8))
    assert max(shares) - min(shares) > 0.5


def test_off_is_the_identity_and_switch_chooses() -> None:
    x, targets = batch()
    for mix in (Mix(chance=0.0), Mix(mixup_alpha=0.0, cutmix_alpha=0.0)):
        y, soft = mix(x, targets, draws(0))
        assert torch.equal(y, x) and torch.equal(soft, targets)
    cut = [bool(set(Mix(mixup_alpha=1.0, switch=0.3)(x, targets, draws(s))[0].unique().tolist()) <= set(range(8)))
           for s in range(200)]
    assert 0.18 < sum(cut) / 200 < 0.45
    used = [not torch.equal(Mix(mixup_alpha=1.0, cutmix_alpha=0.0, chance=0.25)(x, targets, draws(s))[0], x)
            for s in range(200)]
    assert 0.14 < sum(used) / 200 < 0.37


def test_a_part_of_the_batch_mixes_as_the_whole_does() -> None:
    g = torch.Generator().manual_seed(0)
    data = {"image": torch.randint(0, 256, (10, 3, 16, 16), generator=g, dtype=torch.uint8),
            "label": torch.arange(10) % 4}
    views = make_views("supervised", DataSpec("image", 3, 16, (0.5,) * 3, (0.2,) * 3))

    def fetch(rows: Tensor, d: Draws) -> tuple[Tensor, Tensor]:
        return (views(d.take("image", rows), d)[0].x, functional.one_hot(d.take("label", rows), 4).float())

    for step in range(4):
        d = Draws.of(data, Step(step, 10))
        mix = Mix(mixup_alpha=1.0)
        whole, soft = mix(*fetch(d.rows, d), d)
        for rows in (torch.tensor([7, 1, 2]), torch.tensor([0])):
            part = Draws(Step(step, 10), rows, 10, source=d.source)
            y, t = mix(*fetch(rows, part), part, fetch)
            assert torch.allclose(y, whole[rows], atol=1e-6) and torch.allclose(t, soft[rows])
    with pytest.raises(UsageError, match="fetch"):
        mix(*fetch(rows, part), part)


def test_bad_settings_are_refused() -> None:
    for bad in ({"mixup_alpha": -1.0}, {"chance": 1.5}, {"switch": -0.1}):
        with pytest.raises(UsageError):
            Mix(**bad)
