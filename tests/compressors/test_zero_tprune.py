from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.compressors.zero_tprune import ZeroTPrune, iterations
from osteon.core.errors import UsageError
from osteon.parts.compressor import Budget
from osteon.parts.surgery import edits_of
from osteon.parts.token_pruning import TokenPruning, combine_heads, least_similar, page_rank
from tests.contracts.compressor_kit import VIT, calibration, network


def test_page_rank_by_hand():
    a = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    assert torch.allclose(page_rank(a, 1), torch.tensor([[[0.75, 0.25]]]))
    assert torch.allclose(page_rank(a, 60), torch.tensor([[[2 / 3, 1 / 3]]]))  # the stationary shares
    assert torch.allclose(page_rank(a, 0), torch.tensor([[[0.5, 0.5]]]))


def test_shares_sum_to_one_and_follow_a_permutation():
    a = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    s, order = page_rank(a, 5), torch.randperm(7, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(s.sum(-1), torch.ones(2, 3)) and (s >= 0).all()
    assert torch.allclose(page_rank(a[..., order, :][..., order], 5), s[..., order], atol=1e-6)


def test_heads_of_abnormal_variance_do_not_count_unless_all_are():
    flat, peak, fit = [0.25] * 4, [1.0, 0, 0, 0], [0.4, 0.2, 0.2, 0.2]
    score = torch.tensor([[flat, peak, fit]])
    assert torch.allclose(combine_heads(score, 0.01, 0.7), torch.tensor([fit]) * 4)
    both = combine_heads(torch.tensor([[flat, peak]]), 0.01, 0.7)
    assert torch.allclose(both[0, 0], torch.tensor(((1 + 16) / 2) ** 0.5))


def test_of_two_equal_tokens_the_less_important_leaves():
    keys = torch.eye(6)[None].clone()
    keys[0, 3] = keys[0, 0]
    keep = least_similar(keys, torch.arange(6)[None], 1)
    assert keep.tolist() == [[True, True, True, False, True, True]]


def test_shares_of_one_give_the_blocks_own_output_and_ratios_change_at_run_time():
    net = network()
    block = TokenPruning(net.blocks[0], prefix=0, keep_importance=1.0, keep_similarity=1.0, iterations=3)
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), net.blocks[0](x))
    block.set_ratio(0.5, 0.5)
    out, whole = block(x), net.blocks[0](x)
    assert out.shape == (2, 4, 32)
    for mine, all_ in zip(out, whole, strict=True):
        places = [int((all_ == token).all(1).nonzero()) for token in mine]
        assert places == sorted(places), "raster order is kept"
    with pytest.raises(UsageError):
        block.set_ratio(0.0, 1.0)
    with pytest.raises(UsageError):
        block.set_ratio(0.5, 0.4)


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


def test_the_most_attended_tokens_are_those_that_stay():
    net = network()
    block = TokenPruning(net.blocks[0], prefix=0, keep_importance=0.25, keep_similarity=1.0, iterations=30, low=0,
                         high=100)
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    weights = net.blocks[0].attn.attention_weights(net.blocks[0].norm1(x))
    score = combine_heads(page_rank(weights, 30), 0, 100)[0]
    wanted = net.blocks[0](x)[0, score.topk(4).indices.sort().values]
    assert torch.equal(block(x)[0], wanted)


def test_masks_other_networks_and_odd_blocks_are_refused():
    small = ZeroTPrune()(network(), Budget("flops", 0.7), calibration())
    with pytest.raises(UsageError, match="no attention mask"):
        small.trunk(torch.randn(1, 16, 32), attend=torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(UsageError, match="no plain ViT"):
        ZeroTPrune()(network("maps"), Budget("flops", 0.7), calibration())
    with pytest.raises(UsageError, match="0 to 2"):
        ZeroTPrune(blocks="3")(network(), Budget("flops", 0.7), calibration())
    assert [iterations(i, 12) for i in (0, 2, 3, 8, 9, 11)] == [30, 30, 5, 5, 1, 1]
