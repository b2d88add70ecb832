"""Tubes: a few frames of a square patch, cut and put back by hand."""

from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.backbones._stem_tubes import TubeEmbed, default_sides
from osteon.core.errors import UsageError


def test_what_a_tube_shows_by_hand():
    # Pixel value 100 t + 10 row + column; tube (1, 0, 1) holds frames 2 and 3, rows 0 and 1, columns 2 and 3.
    t, row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), torch.arange(4.0), indexing="ij")
    x = (100 * t + 10 * row + column)[None, None]
    stem = TubeEmbed(1, (4, 4, 4), 8, time=2, side=2)
    shown = stem.shown(x)
    assert shown.shape == (1, 8, 8) and shown[0, 5].tolist() == [202, 203, 212, 213, 302, 303, 312, 313]
    assert torch.equal(stem.assemble(shown, x), x)
    colours = torch.randn(2, 3, 4, 4, 6)
    wide = TubeEmbed(3, (4, 4, 6), 8, time=1, side=2)
    assert torch.equal(wide.assemble(wide.shown(colours), colours), colours)


def test_a_token_is_a_linear_map_of_its_tube():
    torch.manual_seed(0)
    stem, x = TubeEmbed(3, (4, 8, 8), 16, time=2, side=4), torch.randn(2, 3, 4, 8, 8)
    weight = stem.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)  # channels last, as shown
    torch.testing.assert_close(stem(x), stem.shown(x) @ weight.T + stem.proj.bias)


def test_sides_by_rule_and_grids():
    assert default_sides((16, 224, 224)) == (2, 16) and default_sides((16, 32, 32)) == (2, 4)
    assert default_sides((5, 64, 64)) == (1, 8) and default_sides((4, 18, 18)) == (2, 3)
    net = build_backbone("vit_tiny", channels=1, size=(16, 32, 32), stem="tubes", stem_options={"time": 4, "side": 8})
    assert net.grid(16, 32, 32) == (4, 4, 4) and net.shown_width == 256
    assert net(torch.zeros(1, 1, 8, 32, 32)).tokens.shape == (1, 32, 64)  # shorter clips too


def test_what_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="do not divide into tubes of 3 x 4 x 4"):
        TubeEmbed(1, (16, 32, 32), 8, time=3)
    with pytest.raises(UsageError, match="not cut into tubes"):
        TubeEmbed(1, (32, 32), 8)
