"""The stem of columns: tokens by hand, errors by hand, and that nothing but its own cell reaches a token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone, weights_of
from osteon.backbones._stem_columns import ColumnEmbed
from osteon.core.errors import UsageError

LEVELS = (0, 3, 0, 4)  # number, category, number, category


def stem(levels: tuple[int, ...] = LEVELS, dim: int = 8) -> ColumnEmbed:
    torch.manual_seed(0)
    return ColumnEmbed(levels, dim)


def rows() -> torch.Tensor:
    #                      values                     marks
    return torch.tensor([[[1.5, 2.0, -1.0, 0.0], [0, 0, 0, 0.0]], [[0.0, 0.0, 2.0, 3.0], [1, 0, 0, 1.0]]])


def test_tokens_by_hand():
    s = stem()
    got = s(rows())
    assert got.shape == (2, 4, 8) and s.stride == 1 and s.shown_width == 4
    b, w, m, t = s.bias, s.weight, s.missing, s.table.weight
    assert t.shape == (7, 8)
    want = [[1.5 * w[0] + b[0], t[2] + b[1], -1.0 * w[1] + b[2], t[3] + b[3]],
            [m[0] + b[0], t[0] + b[1], 2.0 * w[1] + b[2], t[6] + b[3]]]
    torch.testing.assert_close(got, torch.stack([torch.stack(r) for r in want]))


def test_a_missing_number_says_nothing_but_that():
    s, x = stem(), rows()
    x[1, 0, 0] = 99.0
    assert torch.equal(s(x), s(rows()))


@pytest.mark.parametrize("levels", [(0, 0), (3, 2), (2,), (0,)])
def test_tables_of_one_sort(levels):
    s = stem(levels)
    x = torch.zeros(3, 2, len(levels))
    s(x).sum().backward()
    shown = s.shown(x)
    prediction = torch.randn(3, len(levels), s.shown_width)
    assert s.shown_error(prediction, shown).shape == (3, len(levels))
    assert (s.weight is None) == (0 not in levels) and (s.table is None) == (max(levels) == 0)
    assert s.shown_values(prediction).shape == s.shown_blank(shown).shape == (3, len(levels), 2)


def test_cells_are_shown_as_they_are():
    assert stem().shown(rows())[1].tolist() == [[0, 1], [0, 0], [2, 0], [3, 1]]


def test_errors_by_hand():
    s, shown = stem(), rows().transpose(1, 2)
    prediction = torch.zeros(2, 4, 4)
    prediction[0, 0, 0] = 1.0  # against 1.5
    prediction[1, 1] = torch.tensor([1.0, 2.0, 3.0, 50.0])  # level 0 of three: the fourth score is nobody's
    got = s.shown_error(prediction, shown)
    e = math.exp
    want = [[0.25, math.log(3), 1.0, math.log(4)], [0.0, math.log(e(1) + e(2) + e(3)) - 1, 4.0, math.log(4)]]
    torch.testing.assert_close(got, torch.tensor(want))
    half = s.shown_error(prediction.bfloat16(), shown)
    assert half.dtype == torch.float32


def test_the_error_pulls_predictions_to_the_cells():
    s, shown = stem(), rows().transpose(1, 2)
    prediction = nn.Parameter(torch.zeros(2, 4, 4))
    for _ in range(60):
        gradient, = torch.autograd.grad(s.shown_error(prediction, shown).sum(), prediction)
        prediction.data -= 0.3 * gradient
    values = s.shown_values(prediction.detach())
    seen = shown[..., 1] == 0
    torch.testing.assert_close(values[..., 0][seen], shown[..., 0][seen], atol=1e-3, rtol=0)
    assert values[1, 3, 0] == 3 and (values[..., 1] == 0).all()  # the level of missing categories is learned as well


def test_predictions_as_cells_never_name_a_level_there_is_not():
    prediction = torch.tensor([[[7.0, 0, 0, 0], [0, 1, 0, 9], [-2, 5, 5, 5], [0, 1, 0, 9]]])
    assert stem().shown_values(prediction)[0, :, 0].tolist() == [7, 1, -2, 3]
    assert stem().shown_blank(torch.zeros(1, 4, 2)).tolist() == [[[0, 1], [2, 1], [0, 1], [3, 1]]]


def test_initial_weights_are_uniform_within_the_root_of_the_width():
    s = ColumnEmbed((0,) * 50 + (200,) * 5, 64)
    for p in s.parameters():
        assert 0.12 < p.abs().max() <= 1 / 8 and abs(float(p.detach().mean())) < 0.01
        assert p.detach().std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


def test_buffers_are_rebuilt_from_the_levels():
    assert sorted(stem().state_dict()) == ["bias", "missing", "table.weight", "weight"]


@pytest.mark.parametrize("levels", [(), (0, 1), (3, -1)])
def test_impossible_levels(levels):
    with pytest.raises(UsageError, match="nothing to tell apart"):
        ColumnEmbed(levels, 8)


def test_a_table_of_other_columns_is_refused():
    with pytest.raises(UsageError, match=r"\(B, 2, 4\)"):
        stem()(torch.zeros(1, 2, 5))


def test_inside_a_transformer_a_hidden_column_is_not_seen():
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=2, size=(4,), dim=16, depth=1, heads=2, patch=1)
    network.patch_embed = stem(dim=16)
    assert network.grid(4) == (4,) and network.shown_width == 4
    x, other = rows(), rows()
    other[:, 0, 1] = 1.0
    mask = torch.tensor([[False, True, False, False]] * 2)
    assert torch.equal(network(x, mask=mask).pooled, network(other, mask=mask).pooled)
    keep = torch.tensor([[0, 2, 3]] * 2)
    assert torch.equal(network(x, keep=keep).pooled, network(other, keep=keep).pooled)
    assert not torch.equal(network(x).pooled, network(other).pooled)


def test_a_network_can_be_counted_without_memory_for_it():
    """What a run describes is built that way before its weights are read."""
    assert weights_of(lambda: build_backbone("vit_tiny", channels=2, size=(3,), levels=[0, 4, 3])) == sum(
        p.numel() for p in build_backbone("vit_tiny", channels=2, size=(3,), levels=[0, 4, 3]).parameters())
