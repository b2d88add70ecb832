from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.compressors.zero_tprune import ZeroTPrune, iterations
from osteon.core.errors import UsageError
from osteon.parts.compressor import Budget
from osteon.parts.surgery import edits_of
from tests.contracts.compressor_kit import VIT, calibration, network


def test_class_and_register_tokens_stay_in_front():
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=3, size=16, **VIT, pool="cls", registers=2).eval()
    small = ZeroTPrune()(net, Budget("flops", 0.7), calibration())
    assert all(options["prefix"] == 3 for options in edits_of(small))
    x = next(calibration().batches())
    block = small.blocks[edits_of(small)[0]["layers"] and 0]
    tokens = torch.cat([net.prefix(8), net.stem(x) + net.positions((4, 4))], 1)
    with torch.no_grad():
        assert torch.equal(block(tokens)[:, :3], net.blocks[0](tokens)[:, :3])
        assert small(x).tokens.shape[1] < 16 and torch.equal(small(x).pooled, small(x).cls)


def test_masks_other_networks_and_odd_blocks_are_refused():
    small = ZeroTPrune()(network(), Budget("flops", 0.7), calibration())
    with pytest.raises(UsageError, match="no attention mask"):
        small.trunk(torch.randn(1, 16, 32), attend=torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(UsageError, match="no plain ViT"):
        ZeroTPrune()(network("maps"), Budget("flops", 0.7), calibration())
    with pytest.raises(UsageError, match="0 to 2"):
        ZeroTPrune(blocks="3")(network(), Budget("flops", 0.7), calibration())
    assert [iterations(i, 12) for i in (0, 2, 3, 8, 9, 11)] == [30, 30, 5, 5, 1, 1]
