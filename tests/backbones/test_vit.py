from __future__ import annotations

import copy
import time

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.backbones._stems import default_patch
from osteon.core.errors import UsageError
from osteon.parts.positions import sincos
from osteon.parts.stochastic_depth import StochasticDepth


def make(**options):
    torch.manual_seed(0)
    size = options.pop("size", 16)
    return build_backbone("vit_tiny", channels=3, size=size, **{"depth": 2, **options})


def images(n=3, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def naive(vit, tokens):
    """Attention and MLP of every block, one sample and one head at a time, with no fused kernel."""
    out = []
    for x in tokens:
        for block in vit.blocks:
            y = block.norm1(x)
            heads, width = block.attn.num_heads, y.shape[1] // block.attn.num_heads
            q, k, v = block.attn.qkv(y).split(y.shape[1], dim=1)
            parts = []
            for h in range(heads):
                s = slice(h * width, (h + 1) * width)
                parts.append(torch.softmax(q[:, s] @ k[:, s].T / width**0.5, dim=1) @ v[:, s])
            x = x + block.attn.proj(torch.cat(parts, 1))
            y = block.norm2(x)
            x = x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(y)))
        out.append(vit.norm(x))
    return torch.stack(out)


def naive_tokens(vit, x):
    """Patches cut and embedded one by one, positions added."""
    p, weight = vit.stride, vit.patch_embed.proj.weight.flatten(1)
    cut = [x[:, :, r:r + p, c:c + p].flatten(1) @ weight.T + vit.patch_embed.proj.bias
           for r in range(0, x.shape[2], p) for c in range(0, x.shape[3], p)]
    return torch.stack(cut, 1) + sincos(vit.grid(*x.shape[2:]), vit.dim)


def test_equals_a_naive_loop():
    vit, x = make(), images()
    f = vit(x)
    want = naive(vit, naive_tokens(vit, x))
    torch.testing.assert_close(f.tokens, want, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(f.pooled, want.mean(1), atol=2e-5, rtol=1e-4)


def test_keep_is_attention_on_the_subset_alone():
    vit, x = make(), images()
    keep = torch.tensor([[0, 5, 7], [15, 2, 1], [3, 4, 8]])
    tokens = naive_tokens(vit, x)
    subset = torch.stack([tokens[i][keep[i]] for i in range(3)])
    f = vit(x, keep=keep)
    torch.testing.assert_close(f.tokens, naive(vit, subset), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(f.pooled, f.tokens.mean(1))
    assert f.grid == (4, 4)
    changed = x.clone()  # a token that is left out is not looked at
    changed[0, :, 0:4, 4:8] = 99
    assert torch.equal(vit(changed, keep=keep).pooled[0], f.pooled[0])


@pytest.mark.parametrize("options", [{}, {"pool": "cls"}, {"registers": 3}, {"pool": "cls", "registers": 2}])
def test_keeping_all_is_the_full_network(options):
    vit, x = make(**options), images()
    full, kept = vit(x), vit(x, keep=torch.arange(16).expand(3, -1))
    torch.testing.assert_close(kept.tokens, full.tokens)
    torch.testing.assert_close(kept.pooled, full.pooled)
    backwards = vit(x, keep=torch.arange(15, -1, -1).expand(3, -1))  # the order of tokens is the caller's
    torch.testing.assert_close(backwards.tokens.flip(1), full.tokens, atol=2e-5, rtol=1e-4)


def test_hidden_pixels_are_not_seen():
    vit, x = make(), images()
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, [0, 5]] = True
    other = x.clone()
    other[:, :, 0:4, 0:4] = torch.nan
    other[:, :, 4:8, 4:8] = torch.nan
    token = torch.randn(64, requires_grad=True)
    f = vit(x, mask=mask, mask_token=token)
    assert torch.equal(f.tokens, vit(other, mask=mask, mask_token=token).tokens)
    assert not torch.allclose(f.tokens, vit(x).tokens)
    (f.pooled ** 2).sum().backward()
    assert token.grad.abs().min() > 0
    tokens = vit.stem(x).clone()  # the same by hand: replaced before positions are added
    tokens[:, [0, 5]] = token
    torch.testing.assert_close(f.tokens, vit.trunk(tokens + vit.positions((4, 4))))
    tokens[:, [0, 5]] = 0
    torch.testing.assert_close(vit(x, mask=mask).tokens, vit.trunk(tokens + vit.positions((4, 4))))
    assert torch.equal(vit(x, mask=torch.zeros_like(mask), mask_token=token).tokens, vit(x).tokens)


def test_mask_and_keep_together():
    vit, x = make(), images()
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 1] = True
    keep = torch.tensor([[0, 1, 2]]).expand(3, -1)
    tokens = vit.stem(x).clone()
    tokens[:, 1] = 0
    tokens = (tokens + vit.positions((4, 4)))[:, :3]
    torch.testing.assert_close(vit(x, mask=mask, keep=keep).tokens, vit.trunk(tokens))


def test_class_and_register_tokens_stay_out_of_the_tokens():
    vit, x = make(pool="cls", registers=2), images()
    f = vit(x)
    assert f.tokens.shape == (3, 16, 64) and torch.equal(f.pooled, f.cls)
    prefix = vit.prefix(3)
    assert prefix.shape == (3, 3, 64) and torch.equal(prefix[0, 0], vit.cls_token[0, 0])
    out = vit.trunk(torch.cat([prefix, vit.stem(x) + vit.positions((4, 4))], 1))
    torch.testing.assert_close(f.cls, out[:, 0])
    torch.testing.assert_close(f.tokens, out[:, 3:])
    assert make().prefix(3).shape == (3, 0, 64) and make()(x).cls is None
    f.pooled.square().sum().backward()
    assert vit.reg_token.grad.abs().sum() > 0 and vit.cls_token.grad.abs().sum() > 0


def test_attend_hides_the_future():
    vit = make()
    tokens = torch.randn(2, 6, 64)
    causal = torch.ones(6, 6).tril().bool()
    full = vit.trunk(tokens, attend=causal)
    short = vit.trunk(tokens[:, :4], attend=causal[:4, :4])
    torch.testing.assert_close(full[:, :4], short, atol=2e-5, rtol=1e-4)
    each = torch.stack([causal, torch.ones(6, 6, dtype=torch.bool)])
    mixed = vit.trunk(tokens, attend=each)
    torch.testing.assert_close(mixed[0], full[0])
    torch.testing.assert_close(mixed[1], vit.trunk(tokens)[1], atol=2e-5, rtol=1e-4)


def test_collect():
    vit = make(depth=3)
    tokens = torch.randn(2, 6, 64)
    out, (last, first) = vit.trunk(tokens, collect=(-1, 0))
    assert torch.equal(out, vit.norm(last)) and torch.equal(first, vit.blocks[0](tokens))
    assert torch.equal(out, vit.trunk(tokens))
    with pytest.raises(UsageError, match="blocks 0 to 2"):
        vit.trunk(tokens, collect=(3,))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_other_sizes_see_the_same_field_of_view(positions):
    vit = make(size=32, positions=positions)
    full, crop = vit.positions((8, 8)), vit.positions((4, 4))
    assert vit(images(size=16)).grid == (4, 4) and crop.shape == (1, 16, 64)
    assert vit(images(2, 32)[..., :16]).grid == (8, 4)
    # a cell of the coarse grid lies in the middle of the four fine ones it covers
    fine = full.reshape(4, 2, 4, 2, 64).mean((1, 3)).reshape(16, 64)
    similarity = torch.nn.functional.cosine_similarity(crop[0][:, None], fine[None], dim=-1)
    assert (similarity.argmax(1) == torch.arange(16)).float().mean() > (0.99 if positions == "sincos" else 0.7)


def test_learned_positions_are_learned_and_order_matters():
    vit, x = make(positions="learned"), images()
    vit(x).pooled.square().sum().backward()
    assert vit.pos_embed.grad.abs().sum() > 0
    assert torch.equal(vit.positions((4, 4)), vit.pos_embed)
    assert "pos_embed" not in make().state_dict()
    swapped = x.roll(4, dims=3)  # whole patches move
    for net in (vit, make()):
        assert not torch.allclose(net(x).pooled, net(swapped).pooled, atol=1e-5)


def test_positions_follow_device_type_and_inference_mode():
    vit, x = make(), images()
    with torch.inference_mode():
        vit(x)
    assert not vit.positions((4, 4)).is_inference()  # what was cached above must serve training
    vit(x).pooled.sum().backward()
    wide = copy.deepcopy(vit).double()
    assert wide(x.double()).pooled.dtype == wide.positions((4, 4)).dtype == torch.float64
    assert copy.deepcopy(vit).bfloat16()(x.bfloat16()).tokens.dtype == torch.bfloat16
    assert torch.equal(vit.positions((4, 4)), sincos((4, 4), 64))


def test_layer_scale_and_stochastic_depth():
    vit, x = make(layer_scale=1e-12), images()
    tokens = vit.stem(x) + vit.positions((4, 4))
    torch.testing.assert_close(vit(x).tokens, vit.norm(tokens))  # branches next to nothing
    dropped = make(depth=3, drop_path=0.9)
    assert [block.drop_path.rate for block in dropped.blocks] == [0.0, 0.45, 0.9]
    plain = make(depth=3)
    plain.load_state_dict(dropped.state_dict())
    assert torch.equal(dropped.eval()(x).tokens, plain.eval()(x).tokens)
    dropped.train()
    torch.manual_seed(1)
    assert not torch.allclose(dropped(x).tokens, plain(x).tokens)
    with pytest.raises(UsageError, match="drop-path rate"):
        make(drop_path=1.0)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    y = StochasticDepth(0.25)(torch.ones(4000, 2, 3))
    values = y.flatten(1)
    assert (values == values[:, :1]).all()  # a sample stands or falls as a whole
    assert sorted(set(values[:, 0].tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)


def test_qkv_bias_and_mlp_ratio():
    assert make(qkv_bias=False).blocks[0].attn.qkv.bias is None
    assert make(mlp_ratio=2.0).blocks[0].mlp.fc1.out_features == 128


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (16, 4), (28, 4), (32, 4), (64, 8), (96, 8), (100, 5), (128, 16),
                                            (224, 16), (2, 2)])
def test_patch_rule(size, patch):
    assert default_patch((size, size)) == patch
    vit = build_backbone("vit_tiny", channels=1, size=size, depth=1)
    assert vit.stride == patch and "rule" in vit.notes[0]
    asked = build_backbone("vit_tiny", channels=1, size=size, depth=1, patch=1 if size < 9 else patch)
    assert "as asked" in asked.notes[0] and asked.options["patch"] == asked.stride


def test_patch_rule_of_volumes_and_clips():
    for extent, patch in (((16, 16, 16), 4), ((8, 8, 8), 2), ((64, 64, 64), 8), ((96, 96, 96), 16), ((16, 32, 32), 4),
                          ((16, 112, 112), 8), ((12, 112, 112), 4)):
        assert default_patch(extent) == patch, extent


def test_known_sizes():
    # timm's deit_tiny, deit_small and deit_base without the classifier (192, 384, 768 wide; 1000 classes)
    for name, whole, width in (("vit_compact", 5_717_416, 192), ("vit_small", 22_050_664, 384),
                               ("vit_base", 86_567_656, 768)):
        with torch.device("meta"):
            net = build_backbone(name, channels=3, size=224, positions="learned", pool="cls")
        ours = sum(p.numel() for p in net.parameters())
        assert ours == whole - (width * 1000 + 1000) - width  # and no position for the class token


@pytest.mark.parametrize("options", [{"heads": 5}, {"depth": 0}, {"pool": "max"}, {"positions": "rope"}, {"patch": 5},
                                     {"registers": -1}, {"mlp_ratio": 0.0}, {"dim": 6, "heads": 2}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError):
        make(**options)(images())


def test_bad_inputs_are_refused():
    vit = make()
    with pytest.raises(UsageError, match="do not divide"):
        vit(images(size=18))
    for keep in (torch.zeros(3, 0, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(3, 4)):
        with pytest.raises(UsageError, match="keep must be int64"):
            vit(images(), keep=keep)
    with pytest.raises(UsageError, match="No patch"):
        default_patch((31, 31))


def test_speed_is_sane():
    vit, x = build_backbone("vit_tiny", channels=3, size=32).eval(), images(64, 32)
    with torch.no_grad():
        vit(x)
        start = time.process_time()
        vit(x)
    assert time.process_time() - start < 2.0  # 64 x 37 MFLOP: about 0.05 s on one core
