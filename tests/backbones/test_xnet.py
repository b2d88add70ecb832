from __future__ import annotations

import json

import pytest
import torch

from osteon.backbones import backbone_names, build_backbone
from osteon.core.errors import UsageError


def make(extent=(8, 8), **options):
    torch.manual_seed(0)
    return build_backbone("xnet_tiny", channels=2, size=extent, **{"width": 4, **options})


def moved(net) -> None:
    """Running statistics and couplers that are not those of the start."""
    with torch.no_grad():
        for coupler in (*net.reshape, *net.turn):
            coupler.mix.weight.normal_(0, 0.1)


@pytest.mark.parametrize("extent", [(16, 16), (8, 12), (4, 8, 8)])
def test_a_dense_map_as_large_as_the_input(extent):
    net = make(extent)
    x = torch.randn(2, 2, *extent)
    f = net(x)
    assert f.levels[0].shape == (2, 4, *extent) and net.level_strides[0] == 1
    assert [m.shape[1] for m in f.levels] == list(net.level_dims)
    for step, m in zip(net.level_strides, f.levels, strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-side // step) for side in extent)
    assert f.grid == net.grid(*extent) == tuple(f.levels[-1].shape[2:])
    torch.testing.assert_close(f.tokens.transpose(1, 2), f.levels[-1].flatten(2))
    assert f.pooled.shape == (2, net.dim) and net.dim == 64 + 4
    torch.testing.assert_close(f.pooled[:, 64:], f.levels[0].flatten(2).mean(2))


def test_large_images_end_at_full_resolution_too():
    net = build_backbone("xnet_small", channels=1, size=72, width=3, decoder="resnet_tiny").eval()
    with torch.no_grad():
        f = net(torch.randn(1, 1, 72, 72))
    assert net.level_strides == (1, 4, 8, 16) and net.stride == 16 and f.levels[0].shape == (1, 3, 72, 72)
    assert net.partners == [0, 1, 3]  # of strides 4, 8, 16, 32 for stages of stride 4, 8 and 16, the deepest
    assert f.levels[1].shape == (1, 3, 18, 18)


def test_at_first_the_decoder_answers_as_in_pre_training_whatever_the_encoder_says():
    net = make().eval()
    x, other = torch.randn(2, 2, 8, 8), [torch.randn(2, d, 8 // s, 8 // s) for d, s in zip(
        net.encoder.level_dims, net.encoder.level_strides, strict=True)]
    with torch.no_grad():
        for got, want in zip(net.decode(x, other), net.decoder(x).levels, strict=True):
            torch.testing.assert_close(got, want)
        moved(net)
        assert not torch.allclose(net.decode(x, other)[0], net.decoder(x).levels[0])


def test_the_decoder_is_walked_from_the_deepest_stage_to_the_finest():
    net = make().eval()
    moved(net)
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        levels, seen = net.encoder(x).levels, net.seen(x)
        stages = [net.decoder.get_submodule(f"layer{i}") for i in (1, 2, 3)]
        want = None
        for i in (2, 1, 0):
            given = seen[i] + torch.nn.functional.interpolate(
                net.reshape[i].mix(levels[net.partners[i]]), size=seen[i].shape[2:], mode="bilinear")
            if want is not None:
                given = given + torch.nn.functional.interpolate(net.turn[i].mix(want), size=seen[i].shape[2:],
                                                                mode="bilinear")
            for block in stages[i]:
                given = block(given)
            want = given
        torch.testing.assert_close(net.decode(x, levels)[0], want)
        sums = [c(m) for c, m in zip(net.pyramid.lateral, net.decode(x, levels), strict=True)]
        middle = sums[1] + torch.nn.functional.interpolate(sums[2], size=sums[1].shape[2:], mode="bilinear")
        finest = sums[0] + torch.nn.functional.interpolate(middle, size=sums[0].shape[2:], mode="bilinear")
        torch.testing.assert_close(net(x).levels[-3], net.pyramid.smooth[0](finest))


def test_both_networks_take_pre_trained_weights_without_a_missing_key():
    net = make()
    first, second = (build_backbone("resnet_tiny", channels=2, size=8) for _ in range(2))
    net.adopt(encoder=first, decoder=second)
    for mine, given in ((net.encoder, first), (net.decoder, second)):
        assert all(torch.equal(v, given.state_dict()[k]) for k, v in mine.state_dict().items())
    assert not torch.equal(net.encoder.conv1.weight, net.decoder.conv1.weight)
    for wrong in (build_backbone("resnet_mini", channels=2, size=8),
                  build_backbone("resnet_tiny", channels=2, size=8, depths=(1, 1, 1))):  # lacks blocks
        with pytest.raises(UsageError, match="are not those of a resnet_tiny"):
            net.adopt(decoder=wrong)


def test_gradient_reaches_both_networks():
    net = make()
    x = torch.randn(4, 2, 8, 8)
    net(x).pooled.square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    deep = {f"pyramid.smooth.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}  # read by levels alone
    assert set(dead) == deep
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.01 * (torch.zeros_like(p) if p.grad is None else p.grad)
    net.zero_grad()
    sum(m.square().sum() for m in net(x).levels).backward()  # the encoder is heard once the couplers have moved
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())


def test_what_it_cannot_do_is_refused():
    net = make()
    with pytest.raises(UsageError, match="does not support masks"):
        net(torch.zeros(1, 2, 8, 8), mask=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match="two ResNets, not of 'vit_tiny'"):
        make(decoder="vit_tiny")
    with pytest.raises(UsageError, match="width"):
        make(width=0)


def test_names_and_options():
    assert {"xnet_tiny", "xnet_mini", "xnet_small"} <= set(backbone_names())
    net = make()
    assert net.options == json.loads(json.dumps(net.options)) == {"encoder": "resnet_tiny", "decoder": "resnet_tiny",
                                                                  "width": 4}
    build_backbone("xnet_tiny", channels=2, size=8, **net.options).load_state_dict(net.state_dict())
