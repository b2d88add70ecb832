from __future__ import annotations

import json
import shutil

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 8,
         "image_size": 32, "hidden_dropout_prob": 0.0}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def images(n=2, channels=3, size=32):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(3))


def test_published_weights_give_the_model_s_own_features(folder):
    net = build_backbone(f"hf:{folder}", channels=3, size=32, pretrained=True).eval()
    theirs = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    whole = theirs(images()).last_hidden_state
    f = net(images())
    torch.testing.assert_close(f.tokens, whole[:, 1:])
    torch.testing.assert_close(f.cls, whole[:, 0])
    assert torch.equal(f.pooled, f.cls) and f.grid == (4, 4) and net.kind == "tokens"
    assert (net.dim, net.token_dim, net.stride) == (32, 32, 8) and net.notes == ["weights: as published"]
    mean = build_backbone(f"hf:{folder}", channels=3, size=32, pretrained=True, pool="mean").eval()
    torch.testing.assert_close(mean(images()).pooled, whole[:, 1:].mean(1))
    assert net(images(size=16)).grid == (2, 2)  # positions are interpolated


def test_an_architecture_follows_the_data(folder):
    net = build_backbone(f"hf:{folder}", channels=5, size=16, patch_size=4, num_hidden_layers=1)
    f = net(images(channels=5, size=16))
    assert f.tokens.shape == (2, 16, 32) and net.notes == ["weights: random"] and len(net.model.layers) == 1
    f.pooled.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_mask_replaces_tokens(folder):
    net, x = build_backbone(f"hf:{folder}", channels=3, size=32).eval(), images()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 0] = True
    other = x.clone()
    other[:, :, :8, :8] = 7.0
    token = torch.randn(32, requires_grad=True)
    f = net(x, mask=mask, mask_token=token)
    torch.testing.assert_close(f.tokens, net(other, mask=mask, mask_token=token).tokens)
    assert not torch.allclose(f.tokens, net(x).tokens) and not torch.allclose(f.tokens, net(x, mask=mask).tokens)
    f.pooled.square().sum().backward()
    assert token.grad.abs().min() > 0
    zeros = net(x, mask=mask, mask_token=torch.zeros(32))
    assert torch.equal(zeros.tokens, net(x, mask=mask).tokens)
    torch.testing.assert_close(net(x, mask=~(mask | True)).tokens, net(x).tokens)
    with pytest.raises(UsageError, match="mask must be bool"):
        net(x, mask=mask[:, :4])
    with pytest.raises(UsageError, match="does not support keep"):
        net(x, keep=torch.zeros(2, 2, dtype=torch.int64))


def test_rebuilt_where_the_folder_is_gone(folder):
    net = build_backbone(f"hf:{folder}", channels=3, size=64, pretrained=True).eval()  # another size than trained on
    shutil.rmtree(folder)
    options = json.loads(json.dumps(net.options))
    again = build_backbone(net.name, channels=3, size=64, **options).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(net(images(size=64)).pooled, again(images(size=64)).pooled) and again.options == net.options


def test_maps(tmp_path):
    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]).save_pretrained(tmp_path)
    net = build_backbone(f"hf:{tmp_path}", channels=2, size=32)
    f = net(images(channels=2))
    assert net.kind == "maps" and f.levels[0].shape == (2, 16, 4, 4) and f.grid == net.grid(32, 32) == (4, 4)
    torch.testing.assert_close(f.pooled, f.tokens.mean(1))
    with pytest.raises(UsageError, match="does not support masks"):
        net(images(channels=2), mask=torch.zeros(2, 16, dtype=torch.bool))


def test_a_network_that_merges_patches_takes_no_masks(tmp_path):
    transformers.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4).save_pretrained(tmp_path)
    net = build_backbone(f"hf:{tmp_path}", channels=3, size=32)
    assert net(images()).grid == net.grid(32, 32) == (4, 4)
    with pytest.raises(UsageError, match="does not support masks"):
        net(images(), mask=torch.zeros(2, 16, dtype=torch.bool))


def test_refusals(folder, tmp_path):
    with pytest.raises(UsageError, match="patch_siz. Did you mean 'patch_size'"):
        build_backbone(f"hf:{folder}", channels=3, size=32, patch_siz=4)
    with pytest.raises(UsageError, match="take 3 channels, the data have 1"):
        build_backbone(f"hf:{folder}", channels=1, size=32, pretrained=True)
    with pytest.raises(UsageError, match="finds no configuration"):
        build_backbone(f"hf:{tmp_path / 'nothing'}", channels=3, size=32)
    with pytest.raises(UsageError, match="pool must be"):
        build_backbone(f"hf:{folder}", channels=3, size=32, pool="max")
    whole = build_backbone(f"hf:{folder}", channels=3, size=32).options["config"]
    with pytest.raises(UsageError, match="patch_size cannot be set beside"):
        build_backbone(f"hf:{folder}", channels=3, size=32, config=whole, patch_size=4)
    with pytest.raises(UsageError, match="for 3 channels, the data have 2"):
        build_backbone(f"hf:{folder}", channels=2, size=32, config=whole)
    with pytest.raises(UsageError, match="no configuration of transformers"):
        build_backbone(f"hf:{folder}", channels=2, size=32, config={"model_type": "nothing"})
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="not an image model"):
        build_backbone(f"hf:{tmp_path / 'bert'}", channels=3, size=32)
