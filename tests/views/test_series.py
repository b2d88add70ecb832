from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views

SPEC = DataSpec("series", 2, 64, (1.0, -2.0), (2.0, 4.0), 1.0, shape=(64,))


def draws(count, index=0):
    return Draws(Step(index, 10, 3), torch.arange(count), count)


def samples(count=16):
    return torch.randn(count, 2, 64, generator=torch.Generator().manual_seed(0)) * 3


def test_no_augmentation_is_normalisation_by_channel():
    x = samples()
    (view,) = make_views("none", SPEC)(x, draws(16))
    torch.testing.assert_close(view.x[:, 0], (x[:, 0] - 1) / 2)
    torch.testing.assert_close(view.x[:, 1], (x[:, 1] + 2) / 4)


def test_a_ramp_stays_a_rising_ramp_over_the_span_drawn():
    ramp = torch.linspace(0, 1, 64).expand(8, 2, 64).contiguous()
    plain = DataSpec("series", 2, 64, (0.0, 0.0), (1.0, 1.0), 1.0, shape=(64,))
    (view,) = make_views("crop_flip", plain, min_scale=0.5)(ramp, draws(8))
    start, stop = view.geometry.box[:, 0], view.geometry.box[:, 2]
    assert (np.diff(view.x[:, 0].numpy(), axis=1) > 0).all()  # time is not turned round
    width = 64 * (stop - start) / 63  # of a cell, in units of the ramp
    torch.testing.assert_close(view.x[:, 0, -1] - view.x[:, 0, 0], width * 63 / 64, atol=0.02, rtol=0)
    assert ((stop - start) >= 0.5).all() and (view.geometry.box[:, 1] == 0).all() and not view.geometry.flip.any()


def test_contrastive_views_differ_are_reproducible_and_hide_a_stretch():
    views = make_views("simclr", SPEC, hide=0.5)
    first, second = views(samples(), draws(16))
    assert not torch.equal(first.x, second.x)
    torch.testing.assert_close(views(samples(), draws(16))[0].x, first.x)
    hidden = (first.x == 0).all(1)  # in all channels at once
    assert 0 < hidden.float().mean() < 0.5
    for row in hidden:
        assert int(np.abs(np.diff(row.int().numpy())).sum()) <= 2  # one band
    assert first.params["scale"].shape == (16, 2) and first.params["noise"].max() <= 0.3


def test_strength_0_without_hiding_is_a_plain_span():
    (view,) = make_views("simclr", SPEC, strength=0.0, hide=0.0, min_scale=1.0, n_views=1)(samples(), draws(16))
    torch.testing.assert_close(view.x, make_views("none", SPEC)(samples(), draws(16))[0].x)


def test_short_views_have_half_the_length_in_whole_tokens():
    views = make_views("multicrop", SPEC, n_local=3, stride=5)(samples(), draws(16))
    assert [v.x.shape[-1] for v in views] == [64, 64, 30, 30, 30]
    assert max(float((v.geometry.box[:, 2] - v.geometry.box[:, 0]).min()) for v in views[:2]) >= 0.6


def test_a_recipe_has_no_options_of_pictures():
    for name in ("byol", "supervised"):
        assert all(v.x.shape == (16, 2, 64) for v in make_views(name, SPEC)(samples(), draws(16)))
    with pytest.raises(UsageError, match="no option 'flip'"):
        make_views("simclr", SPEC, flip=True)
    with pytest.raises(UsageError, match="Spans of"):
        make_views("simclr", SPEC, min_scale=0.0)(samples(), draws(16))
