"""Gradient harmonisation: conflicting gradients, the curriculum, and what the other members get."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.sets_kit import network, numbers, sphere

from osteon.core.errors import UsageError
from osteon.objectives.harmonised import Harmonised, harmonise
from osteon.parts.pairs import symmetric_nce
from osteon.parts.types import Step


def make(**options) -> Harmonised:
    return Harmonised(network(), numbers().spec, joint=16, **options)


def encoded(rows=8):
    return {"z": sphere(rows, 3, 16).requires_grad_(), "there": torch.ones(rows, 3)}


def plain(e):
    z = e["z"]
    return symmetric_nce(z[:, 0], z[:, 1], 1 / 0.07), symmetric_nce(z[:, 0], z[:, 2], 1 / 0.07)


def test_gradients_by_hand():
    g, h = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[-1.0, 1.0], [1.0, 0.0]])
    # g.h = -1: g + h/2 = (0.5, 0.5); h + g = (0, 1); the second pair agrees
    torch.testing.assert_close(harmonise(g, h), torch.tensor([[0.5, 1.5], [2.0, 1.0]]))


def test_the_sum_goes_against_neither():
    g, h = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
    joined = harmonise(g, h)
    assert ((g * h).sum(1) < 0).any()
    assert ((joined * g).sum(1) > -1e-5).all() and ((joined * h).sum(1) > -1e-5).all()
    agree = (g * h).sum(1) >= 0
    torch.testing.assert_close(joined[agree], (g + h)[agree])
    torch.testing.assert_close(harmonise(torch.zeros(1, 3), torch.ones(1, 3)), torch.ones(1, 3))


def test_value_and_gradients():
    e, objective = encoded(), make(mode="project")
    loss = objective.score(e, Step(0, 10, 3))
    first, second = plain(e)
    torch.testing.assert_close(loss.total, first + second)
    got = torch.autograd.grad(loss.total, e["z"])[0]
    g, h = (torch.autograd.grad(part, e["z"], retain_graph=True)[0] for part in (first, second))
    assert 0 < float(loss.parts["conflict"]) < 1
    torch.testing.assert_close(got[:, 0], harmonise(g[:, 0], h[:, 0]))
    torch.testing.assert_close(got[:, 1:], (g + h)[:, 1:])


def test_the_plain_sum_is_a_mode():
    e = encoded()
    got = torch.autograd.grad(make(mode="sum").score(e, Step(0, 10, 3)).total, e["z"])[0]
    first, second = plain(e)
    torch.testing.assert_close(got, torch.autograd.grad(first + second, e["z"])[0])


def test_the_curriculum_starts_with_all_and_ends_with_those_that_agree():
    e, objective = encoded(), make(mode="curriculum", threshold=0.2)
    start = objective.score(e, Step(0, 10, 3))
    assert float(start.parts["kept"]) == 1
    torch.testing.assert_close(start.total, sum(plain(e)))
    first, second = plain(e)
    g, h = (torch.autograd.grad(part, e["z"], retain_graph=True)[0][:, 0] for part in (first, second))
    keep = (torch.cosine_similarity(g, h) >= 0.2).float()
    assert 0 < keep.sum() < 8
    end = objective.score(e, Step(10, 10, 3))
    assert float(end.parts["kept"]) == pytest.approx(float(keep.mean()))
    want = sum(symmetric_nce(e["z"][:, 0], e["z"][:, i], 1 / 0.07, weight=keep) for i in (1, 2))
    torch.testing.assert_close(end.total, want)
    torch.testing.assert_close(torch.autograd.grad(end.total, e["z"], retain_graph=True)[0],
                               torch.autograd.grad(want, e["z"])[0])


def test_sets_with_a_member_missing_are_left_out():
    e, objective = encoded(), make(mode="project")
    e["there"][3, 2] = 0
    few = {"z": e["z"][[0, 1, 2, 4, 5, 6, 7]], "there": torch.ones(7, 3)}
    torch.testing.assert_close(objective.score(e, Step(0, 10, 3)).total, objective.score(few, Step(0, 10, 3)).total)
    e["there"][:] = 0
    assert objective.score(e, Step(0, 10, 3)).total == 0


def test_members_by_name():
    assert make(anchor="text").terms == ["text-image", "text-sound"]
    assert make(anchor="sound", others="text,image").at == [1, 2, 0]


@pytest.mark.parametrize(("options", "reason"), [
    ({"mode": "none"}, "mode is"), ({"anchor": "txt"}, "no member 'txt'"), ({"others": "image,sound"}, "two other"),
    ({"threshold": 2.0}, "threshold")])
def test_bad_options(options, reason):
    with pytest.raises(UsageError, match=reason):
        make(**options)
