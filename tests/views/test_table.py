"""Views of rows of a table: which cells change, where they come from, and that a row's view is its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.modalities.table import Column
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views, recipe_options
from osteon.views import table as tv

K = 10
COLUMNS = [Column(f"n{j}", "numeric", median=0.25 * j) for j in range(6)] + [
    Column(f"c{j}", "categorical", ("u", "v", "w")) for j in range(4)]
SPEC = DataSpec("table", 2, K, (0.0, 0.0), (1.0, 1.0), 1.0, shape=(K,),
                traits={"columns": [c.trait() for c in COLUMNS]})


def rows(n: int = 40) -> Tensor:
    """Cell (i, j) is ``i + j / 100``, so that it says where it comes from; every third row misses its first cell."""
    x = torch.zeros(n, 2, K)
    x[:, 0] = torch.arange(n)[:, None] + torch.arange(K) / 100
    x[::3, 1, 0] = 1
    return x


def draws(n: int = 40, held: list[int] | None = None, step: int = 0) -> Draws:
    x = rows(n)
    return Draws(Step(step, 9, 1), torch.arange(n) if held is None else torch.tensor(held), n,
                 source=lambda key, at: {"table": x}[key][at])


@pytest.mark.parametrize(("recipe", "count"), [("none", 1), ("crop_flip", 1), ("simclr", 2), ("byol", 2),
                                               ("multicrop", 6), ("supervised", 1)])
def test_a_rows_view_is_its_own(recipe, count):
    x = rows()
    before, views = x.clone(), make_views(recipe, SPEC)
    whole = views(x, draws())
    assert len(whole) == count and torch.equal(x, before)
    for held in ([5], [7, 2, 11], list(range(20, 40))):
        for part, all_ in zip(views(x[held], draws(held=held)), whole, strict=True):
            assert torch.equal(part.x, all_.x[held]) and part.x.shape == (len(held), 2, K)
            assert part.geometry.box.tolist() == [[0, 0, 1, 1]] * len(held)
    shuffled = torch.randperm(40).tolist()
    assert torch.equal(views(x[shuffled], draws(held=shuffled))[0].x, whole[0].x[shuffled])
    if recipe not in ("none", "crop_flip"):
        assert not torch.equal(views(x, draws(step=1))[0].x, whole[0].x)
    else:
        assert torch.equal(whole[0].x, x)


def test_three_in_ten_cells_come_from_the_same_column_of_another_row():
    x = rows()
    view = tv.TablePlan(0.3).view(x, SPEC, draws())
    changed = view.params["corrupted"]
    assert (changed.sum(1) == 3).all()
    assert torch.equal(view.x.transpose(1, 2)[~changed], x.transpose(1, 2)[~changed])
    came_from = view.x[:, 0].round().long()
    place = torch.arange(K).expand(40, K)
    torch.testing.assert_close(view.x[:, 0], came_from + place / 100)  # a cell of the same column
    assert (came_from != torch.arange(40)[:, None])[changed].all()  # never the row's own
    assert torch.equal(view.x[:, 1], x[:, 1][came_from, place])  # with its mark
    assert len({tuple(r[c].tolist()) for r, c in zip(came_from, changed, strict=True)}) == 40
    assert (torch.stack([r[c] for r, c in zip(came_from, changed, strict=True)]).diff(dim=1) != 0).any(1).all()


def test_partners_are_uniform_over_the_other_rows():
    x = rows(5)
    seen = torch.zeros(5, 5)
    for step in range(400):
        other = tv.partners(x, SPEC, draws(5, step=step))[:, 0].round().long()
        seen += torch.stack([torch.bincount(row, minlength=5) for row in other])
    assert (seen.diagonal() == 0).all()
    assert (seen[~torch.eye(5, dtype=torch.bool)] / 4000 - 0.25).abs().max() < 0.03


def test_a_single_row_has_no_partner():
    view = tv.TablePlan(0.5).view(rows(1), SPEC, draws(1))
    assert torch.equal(view.x, rows(1))


def test_hidden_cells_are_what_a_missing_cell_is():
    x = rows()
    view = tv.TablePlan(hide=0.5).view(x, SPEC, draws())
    hidden = view.params["hidden"]
    assert (hidden.sum(1) == 5).all() and (view.x[:, 1][hidden] == 1).all()
    absent = torch.tensor([c.absent for c in COLUMNS])
    assert absent.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 4, 4, 4, 4]
    assert torch.equal(view.x[:, 0][hidden], absent.expand(40, K)[hidden])
    assert torch.equal(view.x.transpose(1, 2)[~hidden], x.transpose(1, 2)[~hidden])
    assert (tv.TablePlan(hide=0.99).view(x, SPEC, draws()).params["hidden"].sum(1) == K - 1).all()


@pytest.mark.parametrize(("recipe", "options", "shares"), [
    ("none", {}, [(0, 0)]), ("crop_flip", {"min_scale": 0.6, "n_views": 2}, [(0, 0.4)] * 2),
    ("simclr", {}, [(0.3, 0)] * 2), ("simclr", {"strength": 2.0, "n_views": 3}, [(0.6, 0)] * 3),
    ("simclr", {"strength": 0.0}, [(0, 0)] * 2), ("byol", {"min_scale": 0.5}, [(0.5, 0)] * 2),
    ("multicrop", {"n_local": 1, "global_scale": 0.8}, [(0.2, 0)] * 2 + [(0.1, 0.5)]), ("supervised", {}, [(0.1, 0)])])
def test_what_recipes_plan(recipe, options, shares):
    plans = make_views(recipe, SPEC, **options).plans
    assert [(round(p.corrupt, 9), round(p.hide, 9)) for p in plans] == shares


def test_options_are_those_of_other_modalities_and_checked():
    assert set(recipe_options("multicrop", "table")) == {"style", "n_local", "stride", "global_scale", "strength"}
    with pytest.raises(UsageError, match="Shares of 1.2 .*impossible"):
        make_views("simclr", SPEC, strength=4.0)
    with pytest.raises(UsageError, match="impossible"):
        make_views("crop_flip", SPEC, min_scale=0.0)
    with pytest.raises(UsageError, match="no option 'strenght'.*strength"):
        make_views("simclr", SPEC, strenght=1.0)
