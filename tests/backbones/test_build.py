from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from osteon.backbones import Backbone, backbone_names, backbone_options, build_backbone, resnet, vit
from osteon.core.card import KINDS
from osteon.core.errors import MissingExtra, UsageError

SMALL = ["vit_tiny", "vit_mini", "resnet_tiny", "resnet_mini"]


def test_names():
    names = backbone_names()
    assert len(set(names)) == len(names)
    assert {"vit_tiny", "vit_small", "vit_base", "resnet_tiny", "resnet18", "resnet50"} <= set(names)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        build_backbone("resnet81", channels=3, size=32)
    with pytest.raises(UsageError, match="no option dept. Did you mean 'depth'"):
        build_backbone("vit_tiny", channels=3, size=32, dept=3)
    with pytest.raises(UsageError, match="no backbone 'jax:thing'"):
        build_backbone("jax:thing", channels=3, size=32)
    with pytest.raises(UsageError, match="at least one channel"):
        build_backbone("vit_tiny", channels=0, size=32)


def test_options_show_what_the_preset_sets():
    assert backbone_options("vit_mini")["depth"] == 6 and backbone_options("vit_mini")["pool"] == "mean"
    assert backbone_options("resnet50")["block"] == "bottleneck"
    assert not {"name", "channels", "size"} & set(backbone_options("vit_mini"))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("size", [8, 32])
def test_features_keep_their_promises(name, channels, size):
    torch.manual_seed(0)
    net = build_backbone(name, channels=channels, size=size)
    f = net(torch.randn(2, channels, size, size))
    rows, columns = net.grid(size, size)
    assert isinstance(net, Backbone) and net.name == name and f.grid == (rows, columns)
    assert rows == columns == size // net.stride
    assert f.pooled.shape == (2, net.dim) and f.tokens.shape == (2, rows * columns, net.token_dim)
    assert [level.shape[1] for level in f.levels] == list(net.level_dims)
    assert [size // level.shape[2] for level in f.levels] == list(net.level_strides)
    torch.testing.assert_close(f.pooled, f.tokens.mean(1))


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    net = build_backbone(name, channels=3, size=16)
    f = net(torch.randn(4, 3, 16, 16))
    (f.pooled * torch.randn_like(f.pooled)).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize("name", ["vit_tiny", "resnet_tiny"])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_tiny_is_tiny(name, size):
    net = build_backbone(name, channels=3, size=size)
    assert sum(p.numel() for p in net.parameters()) < 300_000


@pytest.mark.parametrize("name", SMALL)
def test_images_of_the_wrong_kind_are_refused(name):
    net = build_backbone(name, channels=3, size=16)
    for shape in ((2, 1, 16, 16), (2, 3, 16)):
        with pytest.raises(UsageError, match=r"takes images \(B, 3, H, W\)"):
            net(torch.zeros(shape))


@pytest.mark.parametrize("name", SMALL)
def test_masks_of_the_wrong_shape_are_refused(name):
    net = build_backbone(name, channels=3, size=16)
    for mask in (torch.zeros(2, 15, dtype=torch.bool), torch.zeros(2, 16), torch.zeros(1, 16, dtype=torch.bool)):
        with pytest.raises(UsageError, match="mask must be bool"):
            net(torch.zeros(2, 3, 16, 16), mask=mask)


@pytest.mark.parametrize("name", SMALL)
def test_options_rebuild_the_network_after_a_trip_through_json(name):
    extra = {"pool": "cls", "registers": 2} if name.startswith("vit") else {"stride": 2}
    net = build_backbone(name, channels=2, size=16, **extra).eval()
    again = build_backbone(name, channels=2, size=16, **json.loads(json.dumps(net.options))).eval()
    assert again.options == net.options == json.loads(json.dumps(net.options))
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(net(x).pooled, again(x).pooled)


def test_weights_load_in_a_fresh_process(tmp_path: Path):
    torch.manual_seed(0)
    x, stored = torch.randn(3, 1, 8, 8), {}
    for name in ("vit_tiny", "resnet_tiny"):
        net = build_backbone(name, channels=1, size=8)
        net(torch.randn(8, 1, 8, 8))  # moves running statistics
        stored[name] = {"state": net.state_dict(), "y": net.eval()(x).pooled.detach()}
    torch.save({"x": x, "stored": stored}, tmp_path / "w.pt")
    code = """
import sys, torch
from osteon.backbones import build_backbone
torch.set_num_threads(1)
kept = torch.load(sys.argv[1], weights_only=True)
for name, what in kept["stored"].items():
    net = build_backbone(name, channels=1, size=8).eval()
    net.load_state_dict(what["state"])
    print((net(kept["x"]).pooled - what["y"]).abs().max().item())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "w.pt")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [float(line) < 1e-6 for line in run.stdout.split()] == [True, True]


def test_describe_counts_parameters_and_operations():
    net = build_backbone("vit_tiny", channels=3, size=32, depth=1)
    net.train()
    net.blocks[0].eval()
    told = net.describe()
    n, d = 64, 64  # tokens, width
    linear = 2 * n * (48 * d + 3 * d * d + d * d + 8 * d * d)  # patches, qkv, projection, MLP of ratio 4
    attention = 2 * 2 * n * n * d
    assert told["flops"] == linear + attention
    # patches + (2 norms, qkv, proj, two MLP layers) + last norm, all with biases
    assert told["params"] == (48 * d + d) + (4 * d + 3 * d * d + 3 * d + d * d + d + 8 * d * d + 5 * d) + 2 * d
    assert told["name"] == "vit_tiny" and told["notes"] == net.notes
    assert net.training and not net.blocks[0].training  # modes are put back


def test_operations_of_a_convolution():
    net = build_backbone("resnet_tiny", channels=1, size=8, depths=(1,), widths=(4,), stride=1)
    # 64 places; stem 9 x 1 x 4, two convolutions 9 x 4 x 4
    assert net.describe()["flops"] == 2 * 64 * (9 * 4 + 2 * 9 * 16)


def test_describing_leaves_running_statistics_alone():
    net = build_backbone("resnet_tiny", channels=1, size=8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.describe()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("module", [vit, resnet])
def test_cards(module):
    card = module.CARD
    assert card.kind in KINDS and card.kind == "backbone" and card.differs and card.papers
    assert card.name == module.__name__.rsplit(".", 1)[1]


@pytest.mark.parametrize(("door", "package"), [("timm", "timm"), ("hf", "transformers")])
def test_a_missing_package_is_named(door, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"osteon.backbones.{door}_door", raising=False)
    with pytest.raises(MissingExtra, match=rf"osteon\[{door}\]"):
        build_backbone(f"{door}:anything", channels=3, size=32)
