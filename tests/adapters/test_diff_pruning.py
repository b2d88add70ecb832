from __future__ import annotations

import math

import pytest
import torch

from osteon.adapters.diff_pruning import DiffPruning, GatedDiff, hard_concrete, open_probability
from osteon.core.errors import UsageError
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._adapt_objective import AdaptObjective
from tests.contracts.adapter_kit import TASK, images, network, train


def test_gates_by_hand():
    noise = torch.tensor([0.5, 0.5, 1 / (1 + math.e), 0.9999])
    alpha = torch.tensor([0.0, math.log(2), 1.0, 9.0])
    # sigmoid(0) = 1/2 -> 0; sigmoid(ln 2) = 2/3 -> 0.5; logit(noise) = -1 cancels alpha -> 0; large -> 1
    assert hard_concrete(alpha, noise).tolist() == pytest.approx([0.0, 0.5, 0.0, 1.0], abs=1e-6)
    assert hard_concrete(torch.tensor([math.log(2), -5.0, 5.0]), None).tolist() == pytest.approx([0.5, 0, 1], abs=1e-6)


def half_open(**options: float) -> tuple[DiffPruning, GatedDiff]:
    """One layer whose change is 0.6 everywhere, single gates half open without noise, the tensors' gates fully."""
    adapter = DiffPruning(network("vit"), TASK, targets="blocks.0.attn.proj", **options)
    change = next(iter(adapter.layers().values())).change
    assert isinstance(change, GatedDiff)
    with torch.no_grad():
        for part in change.parts:
            change.get_parameter(part).fill_(0.6)
            change.get_parameter(f"gate_{part}").fill_(math.log(2) / adapter.gate_rate)  # sigmoid = 2/3 -> 1/2
            change.get_parameter(f"group_{part}").fill_(20.0 / adapter.gate_rate)
    return adapter, change


def test_a_change_is_its_number_times_both_gates_and_without_noise_in_evaluation():
    adapter, change = half_open()
    adapter.eval()
    for got, part in ((change.weight_delta(), "weight"), (change.bias_delta(), "bias")):
        torch.testing.assert_close(got, torch.full_like(change.get_parameter(part), 0.3))
        with torch.no_grad():
            change.get_parameter(f"group_{part}").fill_(math.log(2) / adapter.gate_rate)
        torch.testing.assert_close(change.diff(part, noisy=False), torch.full_like(got, 0.15))
        with torch.no_grad():
            change.get_parameter(f"group_{part}").fill_(-20.0 / adapter.gate_rate)  # closed: nothing of the tensor
        assert not change.diff(part, noisy=False).any()


def test_in_training_every_number_has_its_own_noise_and_all_share_that_of_the_tensors_gate():
    adapter, change = half_open()
    adapter.train()
    with torch.no_grad():
        own = (change.weight_delta() / 0.6).flatten()
        # at log 2: 0 up to noise 1/3 (log 2 + logit(1/3) = 0), and 1 from 5/7 on (sigmoid = 5/6)
        assert float((own > 0).double().mean()) == pytest.approx(2 / 3, abs=0.05)
        assert float((own > 0.9999).double().mean()) == pytest.approx(2 / 7, abs=0.05)
        change.get_parameter("gate_weight").fill_(20.0 / adapter.gate_rate)
        change.get_parameter("group_weight").zero_()
        drawn = []
        for index in range(40):
            adapter.after_step(Step(index, 1000))
            adapter(images(2))
            values = change.weight_delta().unique()
            assert len(values) == 1
            drawn.append(float(values))
    assert len(set(drawn)) > 10 and 0.0 in drawn


def engine(adapter: DiffPruning, accumulate: int) -> Engine:
    work = AdaptObjective(adapter, TASK, augment="none")
    settings, _ = resolve_settings({"steps": 6, "batch_size": 8, "accumulate": accumulate, "precision": "32"},
                                   adapter.recipe, 100, kind="tokens")
    return Engine(work.train(), settings, make_fabric("32"))


def batch() -> dict[str, torch.Tensor]:
    return {"image": ((images() + 4) * 30).clamp(0, 255).byte(), "label": torch.arange(8) % 4,
            "index": torch.arange(8)}


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_trains_as_the_whole_batch_does_and_draws_the_same_gates(accumulate):
    found = []
    for parts in (1, accumulate):
        torch.manual_seed(0)
        adapter, _ = half_open(until=0.9)
        work = engine(adapter, parts)
        for index in range(3):
            work.gradients(batch(), Step(index, 6))
            found.append({n: p.grad.clone() for n, p in work.named})
            work.optimizer.zero_grad()
            work.objective.after_step(Step(index, 6))
    for whole, shared in zip(found[:3], found[3:], strict=True):
        assert whole.keys() == shared.keys()
        for name, want in whole.items():
            torch.testing.assert_close(shared[name], want, atol=1e-6, rtol=1e-4, msg=name)
    name = next(n for n in found[0] if n.endswith("change.weight"))
    assert not torch.equal(found[0][name] == 0, found[1][name] == 0)  # closed gates let nothing through


def test_a_resumed_run_goes_on_with_the_gates_it_would_have_drawn():
    torch.manual_seed(0)
    adapter, _ = half_open()
    adapter.train().after_step(Step(6, 100))
    again, _ = half_open()
    again.train()
    assert not torch.equal(again(images()), adapter(images()))
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again(images()), adapter(images()))
    assert not [n for n in adapter.delta() if "drawn" in n]


def test_the_penalty_is_how_often_gates_are_open():
    alpha = torch.tensor([-1.0, 0.0, 0.7])
    noise = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)).clamp(1e-4, 1 - 1e-4)
    often = (hard_concrete(alpha.expand_as(noise), noise) > 0).double().mean(0)
    torch.testing.assert_close(open_probability(alpha).double(), often, atol=5e-3, rtol=0)
    adapter = DiffPruning(network("vit"), TASK, penalty=3.0, gate_rate=10.0, targets="blocks.0.attn.proj")
    numbers, tensors = 32 * 32 + 32, 2
    want = 3.0 / (1 + math.exp(-5)) * (numbers + tensors) / numbers
    assert adapter.penalty().item() == pytest.approx(want, rel=1e-5)
    assert adapter.expected_trainable() == 2 * numbers + tensors + 132


def test_pruning_keeps_exactly_the_largest_numbers_over_all_layers():
    adapter = DiffPruning(network("vit"), TASK, share=0.01, targets="blocks.*.attn.proj")
    assert adapter.kept_numbers == round(0.01 * 3 * 1056)
    torch.manual_seed(0)
    with torch.no_grad():
        for change, part in adapter.diffs().values():
            change.get_parameter(part).normal_()
    change, part = adapter.diffs()["blocks.1.attn.proj.weight"]
    with torch.no_grad():
        change.get_parameter("gate_weight")[0].fill_(-5 / 100)  # a closed gate: whatever it lets through is nothing
        change.get_parameter("weight")[0].fill_(50.0)
    every = torch.cat([c.diff(p, noisy=False).flatten() for c, p in adapter.diffs().values()]).detach()
    limit = every.abs().sort(descending=True).values[adapter.kept_numbers - 1]
    adapter.prune()
    after = torch.cat([c.diff(p, noisy=False).flatten() for c, p in adapter.diffs().values()]).detach()
    assert int((after != 0).sum()) == adapter.kept_numbers
    assert torch.equal(after, torch.where(every.abs() >= limit, every, 0))
    assert int((change.get_buffer("mask_weight")[0]).sum()) == 0
    assert adapter.penalty() is None


def test_stages_gates_are_sampled_then_gone_and_only_what_is_kept_moves():
    adapter = DiffPruning(network("vit"), TASK, share=0.01, until=0.5)
    with torch.no_grad():
        for change, part in adapter.diffs().values():
            change.get_parameter(part).normal_(std=0.01)
            change.get_parameter(f"gate_{part}").zero_()
    adapter.train()
    seen = [adapter(images())]
    assert torch.equal(adapter(images()), seen[0])  # in one step always the same gates
    for index in range(4):
        adapter.after_step(Step(index, 10))
        assert not adapter.is_pruned()
        seen.append(adapter(images()))
        assert not any(torch.equal(seen[-1], earlier) for earlier in seen[:-1])  # sampled anew
    adapter.after_step(Step(4, 10))
    assert adapter.is_pruned()
    assert torch.equal(adapter(images()), adapter(images()))
    masks = {n: c.get_buffer(f"mask_{p}").clone() for n, (c, p) in adapter.diffs().items()}
    train(adapter, steps=3)
    merged, base = adapter.merge(), network("vit")
    changed = 0
    for name, (_, _part) in adapter.diffs().items():
        difference = merged.get_parameter(name) != base.get_parameter(name)
        assert not bool((difference & ~masks[name]).any())
        changed += int(difference.sum())
    assert changed <= adapter.kept_numbers


def test_the_delta_is_positions_and_values_and_two_tasks_swap_on_one_base():
    adapter = DiffPruning(network("vit"), TASK, share=0.01)
    logits = {}
    adapter.keep("base")
    for seed, name in ((5, "a"), (6, "b")):
        fresh = DiffPruning(network("vit"), TASK, share=0.01)
        train(fresh, steps=6, lr=0.05, seed=seed)
        delta = fresh.delta()
        stored = sum(len(v) for k, v in delta.items() if k.endswith(".value"))
        assert stored == fresh.kept_numbers and all(v.dtype == torch.int64 for k, v in delta.items() if ".index" in k)
        adapter.keep(name, delta)
        with torch.no_grad():
            logits[name] = fresh.eval()(images())
    for name in ("a", "b", "a"):
        adapter.use(name)
        with torch.no_grad():
            torch.testing.assert_close(adapter.eval()(images()), logits[name], atol=1e-5, rtol=1e-4)
    adapter.use("base")
    assert all(torch.equal(v, network("vit").state_dict()[k]) for k, v in adapter.merge().state_dict().items())


def test_impossible_options():
    for wrong in ({"share": 0.0}, {"penalty": -1.0}, {"gate_rate": 0.0}, {"until": 1.0}):
        with pytest.raises(UsageError, match="share lies in"):
            DiffPruning(network("vit"), TASK, **wrong)
