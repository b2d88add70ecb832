from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.backbones.resnet import default_stride, stage_strides
from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm


def make(name="resnet_tiny", size=16, channels=3, **options):
    torch.manual_seed(0)
    return build_backbone(name, channels=channels, size=size, **options)


def images(n=4, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def some_mask(n=4, cells=16, hidden=9):
    order = torch.rand(n, cells, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order < hidden


def spread(mask, side, size):
    """(B, N) over a grid of ``side`` -> (B, size, size): True where hidden."""
    return mask.reshape(-1, side, side).repeat_interleave(size // side, 1).repeat_interleave(size // side, 2)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512 - 513_000), ("resnet50", 25_557_032 - 2_049_000)])
def test_parameter_count_of_torchvision(name, count):
    with torch.device("meta"):
        net = build_backbone(name, channels=3, size=224)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_computes_what_torchvision_computes(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    other = getattr(models, name)()
    other.fc = nn.Identity()
    ours = build_backbone(name, channels=3, size=224)
    ours.load_state_dict(other.state_dict())
    x = images(2, 64)
    torch.testing.assert_close(ours(x).pooled, other(x))  # training mode: batch statistics
    torch.testing.assert_close(ours.eval()(x).pooled, other.eval()(x))


def test_mask_hides_every_trace_of_hidden_pixels():
    net, x, mask = make(), images(), some_mask()
    hidden = spread(mask, 4, 16)[:, None].expand_as(x)
    other = torch.where(hidden, torch.full_like(x, torch.nan), x)
    a, b = net(x, mask=mask), make()(other, mask=mask)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled)
    for level, fine in zip(a.levels, (16, 8, 4), strict=True):
        at = spread(mask, 4, fine)[:, None].expand_as(level)
        assert level.shape[-1] == fine
        assert (level[at] == 0).all() and (level[~at] != 0).float().mean() > 0.3
    assert (a.tokens[mask] == 0).all()
    assert not torch.allclose(a.pooled, net(x).pooled)
    # pooled is the mean over visible cells alone
    want = torch.stack([t[~m].mean(0) for t, m in zip(a.tokens, mask, strict=True)])
    torch.testing.assert_close(a.pooled, want)


def test_mask_by_a_naive_rule():
    """Multiply by visibility after every layer, statistics over visible positions: spelled out for a small network."""
    net, x, mask = make(depths=(1,), widths=(4,), stride=4, stem="imagenet"), images(), some_mask()
    y = x * ~spread(mask, 4, 16)[:, None]

    def norm(y):
        seen = ~spread(mask, 4, y.shape[-1])
        rows = y.movedim(1, -1)[seen]
        rows = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
        out = torch.zeros_like(y).movedim(1, -1)
        out[seen] = rows
        return out.movedim(-1, 1)

    y = norm(net.conv1(y)).relu()
    y = nn.functional.max_pool2d(y, 3, 2, 1) * ~spread(mask, 4, 4)[:, None]
    block = net.layer1[0]
    y = (y + norm(block.conv2(norm(block.conv1(y)).relu()))).relu()
    torch.testing.assert_close(net(x, mask=mask).levels[0], y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"stem": "imagenet", "stride": 4}, {"stride": 8}])
def test_nothing_hidden_is_the_dense_network(options):
    net, x = make(**options), images()
    cells = (16 // net.stride) ** 2
    dense, masked = net(x), make(**options)(x, mask=torch.zeros(4, cells, dtype=torch.bool))
    torch.testing.assert_close(masked.tokens, dense.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masked.pooled, dense.pooled, atol=1e-5, rtol=1e-4)


def test_statistics_of_a_masked_pass_serve_evaluation():
    net, x, mask = make(), images(), some_mask()
    for _ in range(60):
        net(x, mask=mask)
    trained = net(x, mask=mask).pooled
    torch.testing.assert_close(net.eval()(x, mask=mask).pooled, trained, atol=0.08, rtol=0.05)


def test_gradient_under_a_mask_reaches_every_parameter_and_no_hidden_pixel():
    net, x, mask = make(), images().requires_grad_(), some_mask()
    f = net(x, mask=mask)
    (f.pooled * torch.randn_like(f.pooled)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    hidden = spread(mask, 4, 16)[:, None].expand_as(x)
    assert (x.grad[hidden] == 0).all() and (x.grad[~hidden] != 0).float().mean() > 0.9


def test_a_sample_with_nothing_visible_gives_zeros():
    net, x, mask = make(), images(), some_mask()
    mask[1] = True
    f = net(x, mask=mask)
    assert (f.pooled[1] == 0).all() and torch.isfinite(f.pooled).all()


def test_channels_last_gives_the_same_and_stays():
    net, x, mask = make().eval(), images(), some_mask()
    plain, sparse = net(x), net(x, mask=mask)
    net = net.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    f = net(x)
    assert f.levels[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(f.pooled, plain.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x, mask=mask).pooled, sparse.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "size", "stem", "stride", "levels"), [
    ("resnet_tiny", 8, "cifar", 4, (1, 2, 4)), ("resnet_tiny", 28, "cifar", 4, (1, 2, 4)),
    ("resnet_tiny", 32, "cifar", 8, (2, 4, 8)), ("resnet_tiny", 224, "imagenet", 16, (4, 8, 16)),
    ("resnet18", 32, "cifar", 8, (1, 2, 4, 8)), ("resnet18", 64, "cifar", 8, (1, 2, 4, 8)),
    ("resnet18", 65, "imagenet", 32, (4, 8, 16, 32)), ("resnet18", 16, "cifar", 4, (1, 1, 2, 4))])
def test_stem_and_stride_rules(name, size, stem, stride, levels):
    with torch.device("meta"):
        net = build_backbone(name, channels=3, size=size)
    assert (net.options["stem"], net.stride, net.level_strides) == (stem, stride, levels)
    assert all("rule" in note for note in net.notes)
    assert net.dim == net.level_dims[-1] == net.token_dim


def test_strides_by_hand():
    assert stage_strides(3, 1, 2) == [1, 1, 2] and stage_strides(3, 4, 32) == [2, 2, 2]
    assert default_stride(48, 3, 1) == 8 and default_stride(20, 3, 1) == 4 and default_stride(15, 3, 1) == 4
    for stride in (3, 6, 16):
        with pytest.raises(UsageError, match="Possible: 1, 2, 4, 8"):
            stage_strides(3, 1, stride)
    with pytest.raises(UsageError):
        stage_strides(3, 4, 2)
    assert "as asked" in make(stride=2).notes[1] and make(stride=2).grid(16, 16) == (8, 8)


def test_sizes_that_the_stride_does_not_divide():
    net = make()
    f = net(images(size=18))
    assert f.grid == net.grid(18, 18) == (5, 5)
    with pytest.raises(UsageError, match="do not divide"):
        net(images(size=18), mask=torch.zeros(4, 25, dtype=torch.bool))


def test_oblong_images_under_a_mask():
    net, x = make(), images()[..., :8]
    f = net(x, mask=torch.tensor([[True] + [False] * 7]).expand(4, -1))
    assert f.grid == (4, 2) and (f.tokens[:, 0] == 0).all() and (f.levels[0][:, :, :4, :4] == 0).all()
    assert (f.tokens[:, 1:] != 0).any(-1).all()


def test_zero_init_starts_at_the_shortcut():
    net = make(zero_init=True, depths=(2,), widths=(8,), stride=1)
    x = images()
    torch.testing.assert_close(net(x).levels[0], net.bn1(net.conv1(x)).relu())
    bottleneck = make("resnet50", depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), zero_init=True)
    assert (bottleneck.layer1[0].bn3.weight == 0).all() and (bottleneck.layer1[0].bn2.weight == 1).all()


def test_convolutions_start_he_normal_by_fan_out():
    net = make("resnet18", size=32)
    for conv, fan in ((net.layer2[0].conv1, 128 * 9), (net.layer3[0].downsample[0], 256), (net.conv1, 64 * 9)):
        assert conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


def test_drop_path_and_norms_are_ours():
    net = make(drop_path=0.4)
    assert [b.drop_path.rate for s in (net.layer1, net.layer2, net.layer3) for b in s] == pytest.approx(
        [0, 0.08, 0.16, 0.24, 0.32, 0.4])
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    assert sum(isinstance(m, BatchNorm) for m in net.modules()) == 15


@pytest.mark.parametrize("call", [{"keep": torch.zeros(4, 2, dtype=torch.int64)}, {"mask_token": torch.zeros(64)}])
def test_what_a_convolution_cannot_do_is_refused(call):
    with pytest.raises(UsageError, match="does not support"):
        make()(images(), **call)


def test_token_doors_are_refused():
    net = make()
    for use in (lambda: net.stem(images()), lambda: net.positions((4, 4)), lambda: net.trunk(torch.zeros(1, 2, 64))):
        with pytest.raises(UsageError, match="does not support"):
            use()


@pytest.mark.parametrize("options", [{"block": "wide"}, {"stem": "none"}, {"depths": (1, 1)}, {"widths": (0, 1, 2)},
                                     {"stride": 3}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError):
        make(**options)


def volume_mask(n=2, grid=(2, 2, 3), hidden=5):
    order = torch.rand(n, grid[0] * grid[1] * grid[2], generator=torch.Generator().manual_seed(2)).argsort(1)
    return order < hidden


def test_volumes_pass_three_dimensional_convolutions():
    net = make(size=(8, 8, 12), channels=2, depths=(1, 1), widths=(8, 16), stride=4)
    assert isinstance(net.conv1, nn.Conv3d) and net.conv1.weight.shape == (8, 2, 3, 3, 3)
    x = torch.randn(2, 2, 8, 8, 12, generator=torch.Generator().manual_seed(1))
    out = net(x)
    assert out.grid == net.grid(8, 8, 12) == (2, 2, 3) and out.tokens.shape == (2, 12, 16)
    assert [tuple(level.shape[2:]) for level in out.levels] == [(4, 4, 6), (2, 2, 3)]
    torch.testing.assert_close(out.pooled, out.levels[-1].mean((2, 3, 4)))
    again = make(size=(8, 8, 12), channels=2, **{k: v for k, v in net.options.items()})
    assert again.options == net.options
    pooled = make(size=(96, 96, 96), channels=1, depths=(1, 1), widths=(8, 8))
    assert isinstance(pooled.maxpool, nn.MaxPool3d)


def test_slices_that_are_all_alike_give_what_a_weighted_image_network_gives():
    # a kernel that is zero outside its middle slice sees every slice by itself
    flat = make(size=8, channels=1, depths=(1,), widths=(8,), stride=1).eval()
    deep = make(size=(4, 8, 8), channels=1, depths=(1,), widths=(8,), stride=1).eval()
    state = {k: torch.zeros_like(deep.state_dict()[k]) if v.dim() == 4 else v for k, v in flat.state_dict().items()}
    for key, value in flat.state_dict().items():
        if value.dim() == 4:
            state[key][:, :, state[key].shape[2] // 2] = value
    deep.load_state_dict(state)
    x = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    want = torch.stack([flat(x[:, :, d]).levels[-1] for d in range(4)], 2)
    torch.testing.assert_close(deep(x).levels[-1], want)


def test_mask_hides_every_trace_of_hidden_cells_of_a_volume():
    net = make(size=(8, 8, 12), channels=1, depths=(1, 1), widths=(8, 16), stride=4)
    x, mask = torch.randn(2, 1, 8, 8, 12, generator=torch.Generator().manual_seed(1)), volume_mask()
    hidden = mask.reshape(2, 1, 2, 2, 3)
    for side in (2, 3, 4):
        hidden = hidden.repeat_interleave(4, side)
    first, second = net(x, mask=mask), net(torch.where(hidden, torch.full_like(x, 7.0), x), mask=mask)
    torch.testing.assert_close(first.pooled, second.pooled)
    assert (first.tokens[mask] == 0).all() and (first.tokens[~mask] != 0).any()
    nothing = net.eval()(x, mask=torch.zeros_like(mask))
    torch.testing.assert_close(nothing.pooled, net(x).pooled)
