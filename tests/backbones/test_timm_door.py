from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.parts.taps import taps

pytest.importorskip("timm")

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def vit(**options):
    torch.manual_seed(0)
    return build_backbone("timm:vit_tiny_patch16_224", channels=4, size=32, **{**TINY, **options}).eval()


def images(n=2, size=32, channels=4):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(3))


OPTIONS = [{}, {"reg_tokens": 2, "no_embed_class": True}, {"class_token": False, "global_pool": "avg"},
           {"pos_embed": "none"}, {"pre_norm": True, "init_values": 0.1}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_plain_vit_computes_what_timm_computes(options):
    net, x = vit(**options), images()
    f = net(x)
    whole = net.model.forward_features(x)
    torch.testing.assert_close(f.tokens, whole[:, net.model.num_prefix_tokens:])
    torch.testing.assert_close(f.pooled, net.model.forward_head(whole, pre_logits=True))
    assert net.kind == "tokens" and f.grid == (4, 4) and net.dim == 32 and net.stride == 8
    if net.model.cls_token is not None:
        torch.testing.assert_close(f.cls, whole[:, 0])


def test_the_stock_model_at_a_small_size():
    net = build_backbone("timm:vit_tiny_patch16_224", channels=3, size=32)
    f = net(images(channels=3))
    assert f.tokens.shape == (2, 4, 192) and net.notes[0] == "weights: random" and net.options == {}


@pytest.mark.parametrize("options", OPTIONS)
def test_keep_and_mask(options):
    net, x = vit(**options), images()
    full = net(x)
    torch.testing.assert_close(net(x, keep=torch.arange(16).expand(2, -1)).pooled, full.pooled)
    keep = torch.tensor([[0, 3, 5], [9, 2, 15]])
    some = net(x, keep=keep)
    tokens = net.stem(x) + net.positions((4, 4))
    subset = torch.stack([tokens[i][keep[i]] for i in range(2)])
    count = net.prefix(2).shape[1]
    torch.testing.assert_close(some.tokens, net.trunk(torch.cat([net.prefix(2), subset], 1))[:, count:])
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 0] = True
    other = x.clone()
    other[:, :, :8, :8] = torch.nan
    token = torch.randn(32, generator=torch.Generator().manual_seed(1))
    hidden = net(x, mask=mask, mask_token=token)
    assert torch.equal(hidden.tokens, net(other, mask=mask, mask_token=token).tokens)
    replaced = net.stem(x).clone()
    replaced[:, 0] = token
    torch.testing.assert_close(hidden.tokens, net.finish(replaced + net.positions((4, 4)), (4, 4)).tokens)
    assert not torch.allclose(hidden.tokens[:, 0], net(x, mask=mask).tokens[:, 0])


def test_other_sizes_attend_and_collect():
    net = vit()
    assert net(images(size=16)).grid == (2, 2)
    tokens = torch.randn(2, 5, 32)
    causal = torch.ones(5, 5).tril().bool()
    out = net.trunk(tokens, attend=causal)
    torch.testing.assert_close(out[:, :3], net.trunk(tokens[:, :3], attend=causal[:3, :3]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.trunk(tokens, attend=causal.expand(2, 5, 5)), out)
    last, (first,) = net.trunk(tokens, collect=(0,))
    assert torch.equal(first, net.model.blocks[0](tokens)) and torch.equal(last, net.trunk(tokens))
    with pytest.raises(UsageError, match="blocks 0 to 1"):
        net.trunk(tokens, collect=(2,))


def test_attention_taps_reproduce_timm():
    net, x = vit(qk_norm=True), images()
    with taps(net, "model.blocks.1", kind="attention") as t, taps(net, "model.blocks.1.attn", kind="input") as i:
        with taps(net, "model.blocks.1.attn") as o:
            net(x)
    attention, weights = net.model.blocks[1].attn, t["model.blocks.1"]
    v = attention.qkv(i["model.blocks.1.attn"])[..., 64:].reshape(2, 17, 4, 8).transpose(1, 2)
    torch.testing.assert_close(attention.proj((weights @ v).transpose(1, 2).flatten(2)), o["model.blocks.1.attn"])


@pytest.mark.parametrize(("name", "size"), [("resnet10t", 64), ("convnext_atto", 64)])
def test_a_convolutional_model_gives_features_only(name, size):
    torch.manual_seed(0)
    net, x = build_backbone(f"timm:{name}", channels=4, size=size).eval(), images(size=size)
    f = net(x)
    whole = net.model.forward_features(x)
    torch.testing.assert_close(f.levels[-1], whole)
    torch.testing.assert_close(f.pooled, net.model.forward_head(whole, pre_logits=True))
    assert net.kind == "maps" and f.grid == net.grid(size, size) == tuple(whole.shape[2:])
    assert f.tokens.shape == (2, f.grid[0] * f.grid[1], net.token_dim)
    assert [level.shape[1] for level in f.levels] == list(net.level_dims)
    assert [size // level.shape[2] for level in f.levels] == list(net.level_strides)
    for call in ({"mask": torch.zeros(2, 4, dtype=torch.bool)}, {"keep": torch.zeros(2, 1, dtype=torch.int64)}):
        with pytest.raises(UsageError, match="does not support masks"):
            net(x, **call)
    with pytest.raises(UsageError, match=r"does not support stem\(\)"):
        net.stem(x)
    assert any("BatchNorm" in note for note in net.notes) == (name == "resnet10t")


def test_building_leaves_running_statistics_alone_and_the_network_in_training_mode():
    net = build_backbone("timm:resnet10t", channels=3, size=32)
    assert net.training and all(m.training for m in net.modules())
    assert (net.model.bn1.running_var == 1).all() if hasattr(net.model.bn1, "running_var") else True


def test_refusals():
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        build_backbone("timm:resnet81", channels=3, size=32)
    with pytest.raises(UsageError, match="follows from the data"):
        build_backbone("timm:resnet10t", channels=3, size=32, in_chans=5)
    with pytest.raises(UsageError, match="cannot build"):
        build_backbone("timm:vit_tiny_patch16_224", channels=3, size=32, no_such_option=5)
    with pytest.raises(UsageError, match="takes images"):
        vit()(images(channels=3))
    with pytest.raises(UsageError, match="do not divide"):
        vit()(images(size=20))


def test_rebuilt_from_its_options():
    net = vit(reg_tokens=1, pretrained=False)
    assert net.options == {**TINY, "reg_tokens": 1}  # where weights came from is no part of the architecture
    again = build_backbone(net.name, channels=4, size=32, **net.options).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(net(images()).pooled, again(images()).pooled)


def test_published_weights_name_their_licence(monkeypatch):
    import timm

    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: made(name, **options))
    named = "timm:resnet10t.c3_in1k"
    origin = build_backbone(named, channels=3, size=32, pretrained=True).origin
    assert origin == {"name": named, "license": "apache-2.0"}
    assert build_backbone(named, channels=3, size=32).origin is None
