from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.adapters._singular import SingularValues
from osteon.adapters.vectorfit import VectorFit, to_rest
from osteon.core.errors import UsageError
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._adapt_objective import AdaptObjective
from tests.contracts.adapter_kit import TASK, images, network, train


def test_those_that_moved_most_rest():
    strength = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2])
    assert to_rest(strength, 0.4).tolist() == [False, True, False, True, False]
    assert to_rest(strength, 0.19).sum() == 0 and to_rest(strength, 0.0).sum() == 0


def test_the_count_is_all_singular_values_and_all_biases():
    # a block: qkv min(96, 32) + 96, proj 32 + 32, fc1 32 + 128, fc2 32 + 32
    assert VectorFit(network("vit"), TASK).expected_trainable() == 3 * (32 + 96 + 64 + 160 + 64) + 132
    base = network("resnet")  # convolutions without bias: min(out, in * 9) alone
    got = VectorFit(base, TASK, targets="layer1.0.conv1").expected_trainable()
    assert got == 8 + 16 * 4 + 4


def test_the_update_has_full_rank_and_the_bias_moves():
    adapter = VectorFit(network("vit"), TASK, targets="blocks.1.attn.proj", resting=0.0)
    train(adapter, lr=0.1)
    change = next(iter(adapter.layers().values())).change
    assert int(torch.linalg.matrix_rank(change.weight_delta().detach(), rtol=1e-5)) >= 0.9 * 32
    assert change.bias_delta().abs().min() > 0


def test_a_resting_vector_gets_no_gradient_so_that_the_optimiser_leaves_it_alone():
    layer = nn.Linear(3, 3)
    change = SingularValues(layer, rank=3, bias=True)
    optimizer = torch.optim.Adam(change.parameters(), lr=0.1)
    for step in range(4):
        if step == 2:
            change.held[0], change.held[1] = True, False
            before = change.shift.detach().clone(), change.offset.detach().clone()
        optimizer.zero_grad(set_to_none=True)
        (change.weight_delta().sum() + change.bias_delta().sum()).backward()
        optimizer.step()
    assert change.shift.grad is None and torch.equal(change.shift, before[0])
    assert not torch.equal(change.offset, before[1])
    change.held[1] = True
    assert not change.bias_delta().requires_grad


def test_who_rests_is_chosen_anew_each_period_after_the_warm_up_and_only_for_a_while():
    adapter = VectorFit(network("vit"), TASK, targets="blocks.*.attn.proj", warmup=0.2, periods=4, resting=0.34,
                        memory=0.0)
    assert len(adapter.strength) == 6
    vectors = [v for change in adapter.changes() for v in change.vectors()]

    def resting() -> list[int]:
        flags = [bool(change.held[i]) for change in adapter.changes() for i in range(2)]
        return [i for i, flag in enumerate(flags) if flag]

    seen = []
    for index in range(20):  # warm-up to step 4, then periods of 4 steps
        with torch.no_grad():
            vectors[index // 4].fill_(float(index + 1))
        adapter.after_step(Step(index, 20))
        seen.append(resting())
    assert seen[:3] == [[]] * 3
    assert [len(s) for s in seen[3:]] == [2] * 17
    changes = [i for i in range(1, 20) if seen[i] != seen[i - 1]]
    assert set(changes) <= {3, 7, 11, 15, 19} and len(changes) >= 4
    assert seen[3] == [0, 1] or 0 in seen[3]
    assert 0 not in seen[19]  # it came back


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_trains_as_the_whole_batch_does_and_the_same_vectors_rest(accumulate):
    rested, found = [], []
    for parts in (1, accumulate):
        torch.manual_seed(0)
        adapter = VectorFit(network("vit"), TASK, warmup=0.0, periods=6, resting=0.3)
        settings, _ = resolve_settings({"steps": 12, "batch_size": 8, "accumulate": parts, "precision": "32",
                                        "optimizer": "sgd", "lr": 0.1, "warmup": 0.0}, adapter.recipe, 100,
                                       kind="tokens")
        engine = Engine(AdaptObjective(adapter, TASK, augment="none").train(), settings, make_fabric("32"))
        batch = {"image": ((images() + 4) * 30).clamp(0, 255).byte(), "label": torch.arange(8) % 4,
                 "index": torch.arange(8)}
        for index in range(12):
            engine.run(batch, Step(index, 12))
            rested.append([change.held.tolist() for change in adapter.changes()])
        found.append({n: p.detach() for n, p in adapter.named_parameters() if p.requires_grad})
    assert rested[:12] == rested[12:]
    assert len({str(r) for r in rested}) > 2  # they take turns
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, atol=1e-5, rtol=1e-3, msg=name)


def test_vectors_that_moved_alike_but_for_rounding_rest_in_order():
    """After one step of Adam every vector has moved by the rate: rounding must not decide who rests."""
    strength = torch.full((6,), 0.01)
    for noise in (torch.zeros(6), torch.tensor([0, 1, 0, 2, 1, 2]) * 1e-9):
        assert to_rest(strength + noise, 0.34).tolist() == [True, True] + [False] * 4


def test_the_moving_average_of_how_far_vectors_moved():
    adapter = VectorFit(network("vit"), TASK, targets="blocks.0.attn.proj", memory=0.75)
    for value in (2.0, 4.0):
        with torch.no_grad():
            adapter.changes()[0].shift.fill_(-value)
        adapter.after_step(Step(0, 100))
    assert adapter.strength.tolist() == pytest.approx([0.75 * 0.25 * 2 + 0.25 * 4, 0.0])


def test_impossible_options():
    for wrong in ({"warmup": 1.0}, {"periods": 0}, {"resting": 1.0}, {"memory": 1.0}):
        with pytest.raises(UsageError, match="warmup, resting and memory"):
            VectorFit(network("vit"), TASK, **wrong)
    assert VectorFit(network("vit"), TASK)(images(2)).shape == (2, 4)
