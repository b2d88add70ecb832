"""Views of sets: each member by its own recipe, what is missing stays missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.data import open_source
from osteon.parts.members import Members
from osteon.parts.types import Draws, Step
from osteon.views import make_views


@pytest.fixture(scope="module")
def data():
    return open_source("numbers:train", cache=False, limit=40)


def draws(n: int, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 3), torch.arange(n), n)


def test_without_augmentation_a_set_stays_what_it_is(data):
    x = data.batch(np.arange(40))["several"]
    view = make_views("none", data.spec)(x, draws(40))[0].x
    torch.testing.assert_close(view, x.float(), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("recipe", ["crop_flip", "simclr", "byol", "multicrop", "supervised"])
def test_missing_members_stay_missing(data, recipe):
    members, x = Members.of(data.spec.traits), data.batch(np.arange(40))["several"]
    views = make_views(recipe, data.spec)(x, draws(40))
    assert len(views) == (1 if recipe in ("crop_flip", "supervised") else 2)
    for view in views:
        assert view.x.shape == x.shape and view.x.isfinite().all()
        assert torch.equal(members.there(view.x), members.there(x))
        for i, member in enumerate(members):
            gone = ~members.there(x)[:, i]
            assert gone.any() and not members.values(view.x, member)[gone].any()
    assert not torch.equal(views[-1].x, x)


def test_members_are_drawn_apart_and_views_too(data):
    members, x = Members.of(data.spec.traits), data.batch(np.arange(40))["several"]
    first, second = (v.x for v in make_views("simclr", data.spec)(x, draws(40)))
    for member in members[:2]:
        both = members.values(first, member), members.values(second, member)
        assert not torch.equal(*both)
    again = make_views("simclr", data.spec)(x, draws(40))[0].x
    assert torch.equal(first, again)
    assert not torch.equal(first, make_views("simclr", data.spec)(x, draws(40, 1))[0].x)


def test_images_are_mirrored_only_where_asked(data):
    x = data.batch(np.arange(40))["several"]
    plain = make_views("crop_flip", data.spec, min_scale=1.0, flip=False)(x, draws(40))[0].x
    torch.testing.assert_close(plain, x.float(), atol=2e-3, rtol=1e-4)
    mirrored = make_views("crop_flip", data.spec, min_scale=1.0, flip=True)(x, draws(40))[0].x
    members = Members.of(data.spec.traits)
    there = members.there(x)[:, 0]
    images, flipped = (members.values(v, members[0])[there] for v in (x.float(), mirrored))
    changed = (flipped - images).abs().flatten(1).amax(1) > 1
    torch.testing.assert_close(flipped[changed], images[changed].flip(-1), atol=2e-3, rtol=1e-4)
    assert 0.2 < changed.float().mean() < 0.8
