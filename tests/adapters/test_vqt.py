from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from osteon.adapters.vqt import VQT, column_norms, query_block
from osteon.core.errors import UsageError
from osteon.parts.types import Step
from osteon.verbs._adapt_cost import SavedBytes
from tests.contracts.adapter_kit import TASK, images, make, network


@pytest.mark.parametrize("net", ["vit", "timm_vit"])
def test_queries_read_as_tokens_that_attend_to_all_but_are_seen_by_none(net):
    """The block itself on tokens and queries together, with a mask, gives the same query rows."""
    base = network(net)
    block = (base.blocks if net == "vit" else base.model.blocks)[1]
    tokens, queries = torch.randn(2, 7, 32), torch.randn(3, 32)
    attend = torch.zeros(10, 10, dtype=torch.bool)
    attend[:, :7] = True
    both = torch.cat([tokens, queries.expand(2, -1, -1)], 1)
    want = (block(both, attend=attend) if net == "vit" else block(both, attn_mask=attend))[:, 7:]
    torch.testing.assert_close(query_block(block, queries, tokens), want, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_the_whole_block_and_nothing_of_the_backbone_is_kept():
    block = network("vit").blocks[0].requires_grad_(False)
    tokens = torch.randn(2, 7, 32, requires_grad=True)
    queries = torch.randn(3, 32, requires_grad=True)
    with SavedBytes(block) as few:
        query_block(block, queries, tokens).square().sum().backward()
    assert tokens.grad is None
    mine, queries.grad = queries.grad, None
    attend = torch.zeros(10, 10, dtype=torch.bool)
    attend[:, :7] = True
    with SavedBytes(block) as many:
        both = torch.cat([tokens.detach(), queries.expand(2, -1, -1)], 1)
        block(both, attend=attend)[:, 7:].square().sum().backward()
    torch.testing.assert_close(mine, queries.grad, atol=1e-5, rtol=1e-4)
    assert few.total < 0.75 * many.total


def test_the_head_reads_unit_chunks_of_every_block():
    adapter = VQT(network("vit"), TASK, queries=2, dropout=0.0).eval()
    features = adapter.encode(images())
    assert features.shape == (8, 32 + 3 * 2 * 32)
    norms = [chunk.norm(dim=1) for chunk in features.split([32, 64, 64, 64], dim=1)]
    assert all(torch.allclose(n, torch.ones(8), atol=1e-5) for n in norms)
    base = network("vit")
    first = base.stem(images()) + base.positions((4, 4))
    want = F.normalize(query_block(base.blocks[0], adapter.queries[0], first).flatten(1), dim=-1)
    torch.testing.assert_close(features[:, 32:96], want, atol=1e-5, rtol=1e-4)
    assert adapter.expected_trainable() == 3 * 2 * 32 + (32 + 192) * 4 + 4


def test_queries_of_one_block_do_not_touch_what_another_reads():
    adapter = VQT(network("vit"), TASK, dropout=0.0).eval()
    before = adapter.encode(images()).detach()
    with torch.no_grad():
        adapter.queries[0] += 1.0
    after = adapter.encode(images()).detach()
    changed = (before != after).any(0)
    assert changed[32:64].any() and not changed[:32].any() and not changed[64:].any()


def test_half_way_the_columns_that_count_most_stay():
    assert column_norms(torch.tensor([[3.0, 0.0], [4.0, 1.0]])).tolist() == [5.0, 1.0]
    adapter = VQT(network("vit"), TASK, keep=0.25, group_lasso=0.1)
    with torch.no_grad():
        adapter.head.weight.copy_(torch.linspace(1, 0, 128).expand(4, -1))
    assert adapter.penalty().item() == pytest.approx(0.1 * 2 * 64.0, rel=1e-4)
    for index in (0, 1, 3):
        adapter.after_step(Step(index, 10))
        assert adapter.columns.sum() == 128
    adapter.after_step(Step(4, 10))
    assert adapter.columns.tolist() == [1.0] * 32 + [0.0] * 96
    assert adapter.penalty() is None
    assert bool((adapter.eval().encode(images())[:, 32:] == 0).all())
    again = VQT(network("vit"), TASK, keep=0.25, group_lasso=0.1)
    again.load_delta(adapter.delta())
    assert torch.equal(again.columns, adapter.columns)
    assert VQT(network("vit"), TASK).penalty() is None


def test_dropout_of_queries_in_training_alone():
    adapter = VQT(network("vit"), TASK, dropout=0.5)
    assert not torch.equal(adapter.train()(images()), adapter(images()))
    assert torch.equal(adapter.eval()(images()), adapter(images()))


def test_what_it_cannot_read_and_impossible_options():
    with pytest.raises(UsageError, match="has blocks of another layout"):
        make("vqt", "hf_vit")
    for wrong in ({"queries": 0}, {"dropout": 1.0}, {"keep": 0.0}, {"group_lasso": -1.0}):
        with pytest.raises(UsageError, match="queries is at least 1"):
            VQT(network("vit"), TASK, **wrong)
