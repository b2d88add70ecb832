from __future__ import annotations

import pytest
import torch
from tests.contracts.compressor_kit import network

from osteon.core.errors import UsageError
from osteon.parts.token_pruning import TokenPruning, combine_heads, least_similar, page_rank


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


def test_the_most_attended_tokens_are_those_that_stay():
    net = network()
    block = TokenPruning(net.blocks[0], prefix=0, keep_importance=0.25, keep_similarity=1.0, iterations=30, low=0,
                         high=100)
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    weights = net.blocks[0].attn.attention_weights(net.blocks[0].norm1(x))
    score = combine_heads(page_rank(weights, 30), 0, 100)[0]
    wanted = net.blocks[0](x)[0, score.topk(4).indices.sort().values]
    assert torch.equal(block(x)[0], wanted)


def test_attention_is_read_where_the_block_computes_it_and_equals_that_computed_anew():
    net = network()
    inner = net.blocks[0]
    block = TokenPruning(inner, prefix=2, keep_importance=0.5, keep_similarity=0.75, iterations=5)
    x = torch.randn(3, 18, 32, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    counter = inner.attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    out, score, keys = block._look(x)
    assert calls == [1], "queries and keys are computed once"
    counter.remove()
    with torch.no_grad():
        y = inner.norm1(x)
        anew = combine_heads(page_rank(inner.attn.attention_weights(y), 5), 0.01, 0.7)[:, 2:]
        assert torch.equal(out, inner(x)) and torch.equal(score, anew)
        assert torch.equal(keys, inner.attn.qkv(y).chunk(3, -1)[1][:, 2:])
    assert not score.requires_grad and not inner.attn.qkv._forward_hooks
    block(x).sum().backward()
    assert inner.attn.qkv.weight.grad is not None


def test_a_block_that_never_calls_its_qkv_layer_is_refused():
    class Beside(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.norm1, self.attn = block.norm1, block.attn

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    block = TokenPruning(Beside(network().blocks[0]), prefix=0, keep_importance=0.5, keep_similarity=1.0, iterations=1)
    with pytest.raises(UsageError, match="beside its qkv layer"):
        block(torch.randn(1, 16, 32))
