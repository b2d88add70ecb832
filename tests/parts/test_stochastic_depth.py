"""Stochastic depth: what is shut is not called, the rule of survival, one draw for all ranks and micro-batches."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.parts.flops import count_step
from osteon.parts.stochastic_depth import (
    StochasticDepth,
    at_level,
    batch_gates,
    drop_rates,
    gate_levels,
    gates,
    linear_survival,
)
from osteon.parts.types import Draws, Step
from osteon.train.loop import Engine, make_fabric, train
from osteon.train.settings import TrainSettings, resolve_settings


class Counted(nn.Module):
    """Doubles its input and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x


def draws(index: int = 0, rows: int = 4, rank: int = 0, seed: int = 0) -> Draws:
    return Draws(Step(index, 100, seed), torch.arange(rank * rows, (rank + 1) * rows), 2 * rows)


def test_the_linear_rule_by_hand():
    assert linear_survival(4, 0.5) == [0.875, 0.75, 0.625, 0.5]  # the first block may be left out already
    assert drop_rates(0.5, 4, "batch") == [0.125, 0.25, 0.375, 0.5]
    assert drop_rates(0.5, 5) == [0.0, 0.125, 0.25, 0.375, 0.5]


def test_a_shut_branch_is_not_called_and_its_shortcut_is_the_input_itself():
    gate, branch, x = StochasticDepth(0.5, mode="batch"), Counted(), torch.ones(3)
    seen = []
    for index in range(60):
        with gates(gate, draws(index)):
            before = branch.calls
            y = gate.join(x, lambda: branch(x))
            assert (y is x) == (branch.calls == before) and (y is x or y.tolist() == [3, 3, 3])
            seen.append(y is x)
    assert 18 <= sum(seen) <= 42 and branch.calls == 60 - sum(seen)


def test_scaling_by_mode_and_the_same_mean_in_training_and_evaluation():
    torch.manual_seed(0)
    x = torch.ones(2)
    for mode, scaling, trained, evaluated in (("batch", None, 3.0, 2.5), ("batch", "train", 1 + 2 / 0.75, 3.0),
                                              ("row", None, 1 + 2 / 0.75, 3.0), ("row", "test", 3.0, 2.5)):
        gate = StochasticDepth(0.25, mode=mode, scaling=scaling)
        values = {gate.join(x, lambda: 2 * x)[0].item() for _ in range(40)}
        assert sorted(values) == pytest.approx([1.0, trained])
        assert 0.75 * trained + 0.25 * 1.0 == pytest.approx(evaluated)  # the expectation is what evaluation gives
        gate.eval()
        assert gate.join(x, lambda: 2 * x).tolist() == pytest.approx([evaluated] * 2)


def test_a_branch_computed_already_is_gated_alike():
    for scaling in ("train", "test"):
        gate = StochasticDepth(0.5, mode="batch", scaling=scaling, branches=2)
        for index in range(12):
            with gates(gate, draws(index)):
                for which in (0, 1):
                    joined = gate.join(torch.ones(2), lambda: torch.ones(2), which)
                    assert torch.equal(joined, 1 + gate(torch.ones(2), which))


def test_two_branches_fall_apart():
    gate, x = StochasticDepth(0.5, mode="batch", branches=2), torch.ones(1)
    gate.gates = [True, False]
    assert [gate.join(x, lambda: 2 * x, which).item() for which in (0, 1)] == [3, 1]


def test_rate_zero_is_a_no_op_and_draws_nothing():
    gate, state = StochasticDepth(0.0, mode="batch"), torch.get_rng_state()
    assert gate.join(torch.ones(1), lambda: torch.ones(1)).item() == 2 and torch.equal(state, torch.get_rng_state())
    assert batch_gates(gate) == []


def test_bad_settings_are_refused():
    for rate in (-0.1, 1.0):
        with pytest.raises(UsageError, match="must lie in"):
            StochasticDepth(rate)
    with pytest.raises(UsageError, match="row or batch"):
        StochasticDepth(0.1, mode="layer")  # type: ignore[arg-type]


def test_gates_are_of_the_step_and_not_of_the_rows_and_are_taken_back():
    net = nn.ModuleList(StochasticDepth(0.5, mode="batch", branches=2) for _ in range(20))

    def drawn(d: Draws) -> list[list[bool] | None]:
        with gates(net, d):
            return [m.gates for m in net]

    assert drawn(draws(3)) == drawn(draws(3, rank=1)) == drawn(draws(3, rows=1))
    assert len({str(drawn(draws(i))) for i in range(5)}) == 5 and drawn(draws(3)) != drawn(draws(3, seed=1))
    flat = [g for pair in drawn(draws(3)) for g in pair or []]
    assert len(flat) == 40 and 8 < sum(flat) < 32 and any(pair[0] != pair[1] for pair in drawn(draws(3)) if pair)
    assert all(m.gates is None for m in net)


def test_survival_is_one_minus_the_rate():
    net = nn.ModuleList(StochasticDepth(r, mode="batch") for r in drop_rates(0.5, 4, "batch"))
    open_ = np.zeros(4)
    for index in range(400):
        with gates(net, draws(index)):
            open_ += [m.gates[0] for m in net]
    assert open_ / 400 == pytest.approx(linear_survival(4, 0.5), abs=0.07)


def test_teachers_keep_every_branch():
    student, teacher = StochasticDepth(0.9, mode="batch"), StochasticDepth(0.9, mode="batch")
    with gates(nn.ModuleList([student, teacher]), draws(), whole=[teacher]):
        assert teacher.join(torch.ones(1), lambda: torch.ones(1)).item() == pytest.approx(1.1)
        assert not teacher.drawing and student.drawing
    assert teacher.drawing


def test_levels_give_the_expected_sum():
    net = nn.ModuleList(StochasticDepth(r, mode="batch") for r in (0.25, 0.5, 0.5))
    costs, total = (3.0, 5.0, 7.0), 0.0
    for weight, level in gate_levels(net):
        with at_level(net, level):
            total += weight * sum(c for m, c in zip(net, costs, strict=True) if m.join(torch.zeros(1), lambda:
                                                                                       torch.ones(1)).item())
    assert total == pytest.approx(0.75 * 3 + 0.5 * 5 + 0.5 * 7)
    assert gate_levels(nn.ModuleList([StochasticDepth(0.5)])) == [(1.0, None)]
    assert all(m.level is None for m in net)


# -- in osteon's networks and loop -------------------------------------------------------------------------------------

DIGITS = open_source("digits", cache=False).subset(np.arange(64))


def make(backbone: str = "vit_tiny", objective: str = "supervised", **options):
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 4} if backbone == "vit_tiny" else {"stride": 2}
    network = build_backbone(backbone, channels=1, size=8,
                             **{**small, "drop_path": 0.5, "drop_mode": "batch", **options})
    return registry.build("objective", objective, network, DIGITS.spec)


def settings(**wishes) -> TrainSettings:
    return replace(TrainSettings(steps=6, batch_size=16, optimizer="sgd", momentum=0.9, weight_decay=0.1, warmup=0.0,
                                 lr=0.01), **wishes)


@pytest.mark.parametrize("backbone", ["vit_tiny", "resnet_tiny"])
def test_what_is_shut_has_no_gradient_and_its_weights_stay(backbone):
    method = make(backbone)
    engine = Engine(method.train(), settings(), make_fabric("32"))
    batch = DIGITS.batch(np.arange(16))
    shut = 0
    for index in range(6):
        before = {n: p.detach().clone() for n, p in engine.named}
        engine.run(batch, Step(index, 6, 0))
        for name, p in engine.named:
            assert (p.grad is None) == torch.equal(p, before[name]), name  # not even momentum moves it
            shut += p.grad is None
    assert shut > 0


def test_options_reach_every_block_and_are_kept():
    network = make("resnet_tiny").backbone
    blocks = [b for i in (1, 2, 3) for b in network.get_submodule(f"layer{i}").children()]
    assert [b.drop_path.rate for b in blocks] == pytest.approx([i / 12 for i in range(1, 7)])
    assert network.options["drop_mode"] == "batch" and "drop_mode" not in make(drop_mode="row").backbone.options
    rebuilt = build_backbone("vit_tiny", channels=1, size=8, **make().backbone.options)
    assert [b.drop_path.mode for b in rebuilt.blocks] == ["batch"] * 4
    with pytest.raises(UsageError, match="row or batch"):
        make(drop_mode="some")


def test_evaluation_scales_by_survival():
    network = make(depth=1, drop_path=0.5).backbone.eval()
    block, x = network.blocks[0], torch.randn(2, 3, 32)
    half = x + 0.5 * block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), half + 0.5 * block.mlp(block.norm2(half)))


def test_a_micro_batch_and_its_second_pass_draw_the_same_gates():
    whole, parts = make(objective="simclr"), make(objective="simclr", layer_scale=0.0)
    for method in (whole, parts):  # without BatchNorm micro-batches change nothing
        method.projector = nn.Linear(method.backbone.dim, 8)
        nn.init.normal_(method.projector.weight, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(method.projector.bias)
    batch, found = DIGITS.batch(np.arange(16)), []
    for method, pieces in ((whole, 1), (parts, 4)):
        engine = Engine(method.train(), settings(accumulate=pieces), make_fabric("32"))
        for index in (0, 1, 2):
            engine.gradients(batch, Step(index, 6, 0))
        found.append({n: p.grad for n, p in engine.named})
    for name, g in found[0].items():
        assert (g is None) == (found[1][name] is None), name
        if g is not None:
            torch.testing.assert_close(found[1][name], g, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_draws_the_gates_of_the_whole_one(tmp_path):
    def go(folder: str, until: int | None = None):
        method = make()
        chosen = resolve_settings({"steps": 6, "batch_size": 16, "precision": "32"}, method.recipe, 64,
                                  kind="tokens")[0]
        run = RunFolder(tmp_path / folder)
        with run.lock():
            train(method, DIGITS, run, chosen, fabric=make_fabric("32"), say=lambda _t: None, until=until)
        return method.state_dict()

    whole = go("whole")
    go("cut", until=3)
    resumed = go("cut")
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())


def test_the_count_of_a_step_is_the_expected_one():
    batch, costs = DIGITS.batch(np.arange(16)), {}
    for rate in (0.0, 0.5):
        method = make(drop_path=rate)
        state = copy.deepcopy(method.state_dict())
        costs[rate] = count_step(Engine(method.train(), settings(), make_fabric("32")), batch, Step(0, 6, 0)).forward
        assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())
    method = make()
    with at_level(method, -1.0):
        fixed = method.backbone.train()
        rest = sum(count_forward_of(fixed))
    # four blocks alike, of which 1 - (0.125 + 0.25 + 0.375 + 0.5) / 4 survive; the rest is always done
    head = 2 * 16 * 32 * DIGITS.spec.num_classes
    assert costs[0.5] == pytest.approx(rest + head + (costs[0.0] - rest - head) * (1 - 1.25 / 4), rel=1e-6)


def count_forward_of(network: nn.Module) -> list[int]:
    from osteon.parts.flops import count_forward

    return [count_forward(network, torch.zeros(16, 1, 8, 8))]


def test_timm_has_no_such_network(tmp_path):
    from osteon.verbs._export_timm import timm_form

    with pytest.raises(UsageError, match="scaled at test time"):
        timm_form(make().backbone, DIGITS.spec)
    assert timm_form(make(drop_mode="row").backbone, DIGITS.spec)[0].startswith("vit")


def test_the_card_says_how_to_turn_it_on():
    card = registry.find("training", "stochastic_depth")
    assert card.rows == (339,) and "backbone.drop_mode=batch" in card.switch
    assert {o.name for o in registry.options(card)} == {"rate", "mode", "scaling", "branches"}
