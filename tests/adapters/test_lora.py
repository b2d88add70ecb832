from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from osteon.adapters.lora import LoRA
from osteon.backbones import Backbone
from osteon.core.errors import UsageError
from osteon.parts.types import Features
from tests.contracts.adapter_kit import TASK, images, network, train


class Foreign(Backbone):
    """A backbone made of torch's own encoder layers, whose fast path bypasses what is called for."""

    kind = "tokens"

    def __init__(self) -> None:
        super().__init__("foreign", channels=3, size=32, options={})
        self.dim = self.token_dim = 16
        self.stride = 8
        self.stem_map = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.spread = nn.Conv2d(16, 16, 3, padding=2, dilation=2)

    def forward(self, x, *, keep=None, mask=None, mask_token=None):
        maps = self.spread(self.stem_map(x))
        tokens = self.layers(maps.flatten(2).transpose(1, 2))
        return Features(tokens.mean(1), tokens, self.grid(*x.shape[-2:]))


@pytest.fixture
def foreign() -> Foreign:
    torch.manual_seed(0)
    return Foreign().eval()


def test_the_change_is_alpha_over_r_times_b_a():
    adapter = LoRA(network("vit"), TASK, rank=2, alpha=6.0, targets="blocks.0.attn.proj").eval()
    layer = adapter.backbone.blocks[0].attn.proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 32)
        base = network("vit").blocks[0].attn.proj
        torch.testing.assert_close(layer(x), base(x) + 3.0 * (x @ a.T @ b.T), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(adapter.merge().blocks[0].attn.proj.weight, base.weight + 3.0 * b @ a)
    assert adapter.expected_trainable() == 2 * (32 + 32) + 132


def test_the_count_of_a_convolution_is_that_of_its_thin_pair():
    adapter = LoRA(network("resnet"), TASK, rank=3, targets="layer2.0.conv1")
    assert adapter.expected_trainable() == 3 * (8 * 9) + 3 * 12 + 16 * 4 + 4


def test_grouped_convolutions_are_left_out_by_rule_and_refused_by_name():
    adapter = LoRA(network("timm_convnext"), TASK, rank=2)
    assert not any("conv_dw" in name for name in adapter.shapes) and len(adapter.shapes) > 8
    with pytest.raises(UsageError, match="grouped convolution model.stages.0.blocks.0.conv_dw"):
        LoRA(network("timm_convnext"), TASK, targets="model.stages.*.blocks.*.conv_dw")


def test_a_layer_that_is_read_and_never_called_is_refused_by_name_and_left_out_by_rule(foreign):
    adapter = LoRA(foreign, TASK, rank=2)
    assert set(adapter.shapes) == {f"layers.layers.{i}.{n}" for i in range(2) for n in ("linear1", "linear2")}
    assert any("self_attn.out_proj (is read by its attention and never called" in note for note in adapter.notes)
    with pytest.raises(UsageError, match="read by its attention and never called"):
        LoRA(foreign, TASK, targets="layers.layers.*.self_attn.out_proj")
    with pytest.raises(UsageError, match="dilated"):
        LoRA(foreign, TASK, targets="spread")


def test_the_fast_path_of_torchs_encoder_does_not_bypass_the_adapter(foreign):
    adapter = LoRA(foreign, TASK, rank=2)
    train(adapter, steps=3, lr=0.05)
    x = images()
    with torch.no_grad():
        fast = adapter.encode(x)
        merged = adapter.merge().eval()
        plain = merged(x).pooled
    slow = adapter.encode(x).detach()  # with gradient, the fast path is not taken
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain, slow, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert (fast - foreign(x).pooled).abs().max() > 1e-2
    assert [m.activation_relu_or_gelu for m in merged.layers.layers] == [
        m.activation_relu_or_gelu for m in foreign.layers.layers]


def test_statistics_of_batch_norm_stay(foreign):
    adapter = LoRA(network("resnet"), TASK, rank=2)
    before = {k: v.clone() for k, v in adapter.backbone.state_dict().items() if "running" in k}
    train(adapter)
    assert before and all(torch.equal(adapter.backbone.state_dict()[k], v) for k, v in before.items())


def test_dropout_works_in_training_alone_although_the_backbone_is_in_evaluation_mode():
    adapter = LoRA(network("vit"), TASK, rank=2, dropout=0.5)
    for name, p in adapter.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    x = images()
    assert not torch.equal(adapter.train()(x), adapter(x))
    adapter.eval()
    assert torch.equal(adapter(x), adapter(x))
    assert not adapter.backbone.blocks[0].norm1.training


def test_what_is_written_in_pefts_format_peft_reads(tmp_path):
    adapter = LoRA(network("vit"), TASK, rank=2)
    train(adapter)
    assert adapter.write_peft(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["base_model_name_or_path"] is None
    assert all("head" not in key for key in load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    model = peft.PeftModel.from_pretrained(network("vit"), tmp_path / "peft")
    with torch.no_grad():
        torch.testing.assert_close(model(images()).pooled, adapter.encode(images()), atol=1e-5, rtol=1e-4)


def test_it_learns_labels_that_the_frozen_features_do_not_carry():
    adapter = LoRA(network("vit"), replace(TASK, num_classes=2), rank=4)
    with torch.no_grad():
        adapter.head.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    adapter.head.requires_grad_(False)
    x, y = images(16), torch.arange(16) % 2
    optimizer = torch.optim.Adam(list(adapter.trainable().values()), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(adapter(x), y).backward()
        optimizer.step()
    assert (adapter(x).argmax(1) == y).float().mean() > 0.9


def test_impossible_options():
    for wrong in ({"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(UsageError, match="rank is at least 1"):
            LoRA(network("vit"), TASK, **wrong)
