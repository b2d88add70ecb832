from __future__ import annotations

import json

import pytest
import torch

from osteon.backbones import backbone_names, build_backbone
from osteon.core.errors import UsageError


@pytest.mark.parametrize("extent", [(16, 16), (8, 8, 8), (9, 7), (5, 8, 6)])
def test_maps_at_every_resolution_the_finest_as_large_as_the_input(extent):
    torch.manual_seed(0)
    net = build_backbone("unet_tiny", channels=2, size=extent, widths=(3, 4, 6))
    f = net(torch.randn(2, 2, *extent))
    assert [tuple(m.shape[1:]) for m in f.levels] == [
        (width, *(-(-side // step) for side in extent)) for width, step in ((3, 1), (4, 2), (6, 4))]
    assert net.level_dims == (3, 4, 6) and net.level_strides == (1, 2, 4) and net.stride == 4
    assert f.grid == net.grid(*extent) and f.tokens.shape == (2, f.levels[2][0, 0].numel(), 6)
    torch.testing.assert_close(f.tokens.transpose(1, 2), f.levels[2].flatten(2))
    assert net.dim == 13
    torch.testing.assert_close(f.pooled, torch.cat([m.flatten(2).mean(2) for m in f.levels], 1))


def test_weights_by_hand_and_gradient_in_all_of_them():
    torch.manual_seed(0)
    net = build_backbone("unet_tiny", channels=1, size=8, widths=(2, 3))
    norms = 2 * (2 + 2 + 3 + 3 + 2 + 2)
    down, up = 9 * (1 * 2 + 2 * 2 + 2 * 3 + 3 * 3), 9 * ((2 + 3) * 2 + 2 * 2)
    assert sum(p.numel() for p in net.parameters()) == down + up + norms
    f = net(torch.randn(4, 1, 8, 8))
    (f.pooled * torch.randn_like(f.pooled)).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())


def test_the_way_up_joins_the_bridge_with_the_level_below():
    net = build_backbone("unet_tiny", channels=1, size=4, widths=(2, 3)).eval()
    x = torch.randn(1, 1, 4, 4)
    with torch.no_grad():
        first = net.down[0](x)
        low = net.down[1](torch.nn.functional.max_pool2d(first, 2))
        wide = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(net(x).levels[0], net.up[0](torch.cat([first, wide], 1)))
        net.up[0][0].weight[:, 2:] = 0  # the level below is no longer heard
    net(x).levels[0].square().sum().backward()
    assert float(net.down[0][0].weight.grad.abs().sum()) > 0  # over the bridge
    assert float(net.down[1][0].weight.grad.abs().sum()) == 0


def test_what_it_cannot_do_is_refused():
    net = build_backbone("unet_mini", channels=1, size=8)
    for wrong in ({"keep": torch.zeros(1, 1, dtype=torch.int64)}, {"mask": torch.zeros(1, 1, dtype=torch.bool)}):
        with pytest.raises(UsageError, match="does not support masks"):
            net(torch.zeros(1, 1, 8, 8), **wrong)
    with pytest.raises(UsageError, match="takes images"):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="1 side"):
        build_backbone("unet_tiny", channels=1, size=(8,))
    for widths in ((4,), (4, 0), (1,) * 9):
        with pytest.raises(UsageError, match="widths"):
            build_backbone("unet_tiny", channels=1, size=8, widths=widths)


def test_names_and_options():
    assert {"unet_tiny", "unet_mini", "unet_small"} <= set(backbone_names())
    net = build_backbone("unet_small", channels=1, size=(8, 8, 8))
    assert net.options == json.loads(json.dumps(net.options)) and net.stride == 16  # 4 halvings, 16 channels: anatomix
    again = build_backbone("unet_small", channels=1, size=(8, 8, 8), **net.options)
    again.load_state_dict(net.state_dict())
