from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from osteon.core.errors import MonitorStop
from osteon.parts.types import Loss
from osteon.train.monitors import CollapseMonitor, NumberMonitor, effective_rank


def random(batch, dim, seed=0, mean=0.0):
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed)) + mean


def rank_one(batch=32, dim=64, step=0):
    """All on one line through the origin, in both directions: spread, but of rank 1."""
    return random(batch, 1, step) * random(1, dim, 99)


def stopped_at(features, steps=range(0, 400, 20), monitor=None):
    monitor = monitor or CollapseMonitor()
    for step in steps:
        try:
            monitor.check(features(step), step)
        except MonitorStop as error:
            return step, str(error)
    return None, ""


def test_effective_rank_by_hand():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 2.0])) == pytest.approx(4.0)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1.0)
    # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2
    assert effective_rank(torch.tensor([4.0, 2.0, 2.0])) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3)) == 0.0


def test_measures_by_hand():
    # Four orthogonal unit vectors: four equal singular values; each dimension is 1 once in 4: std sqrt(3)/4, x sqrt(4).
    found = CollapseMonitor().check(torch.eye(4) * torch.tensor([[1.0], [2.0], [3.0], [4.0]]), 0)
    assert found["rank"] == pytest.approx(4.0) and found["feature_std"] == pytest.approx(3**0.5 / 2)
    # B x D and its size: values 1 and 2 for features (1, 0) x4 and (0, 1) x1 -> singular values 2, 1.
    found = CollapseMonitor().check(torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 7.0]]), 0)
    assert found["rank"] == pytest.approx(math.exp(math.log(3) - 2 / 3 * math.log(2)))


def test_evenly_spread_features_have_std_about_one():
    assert CollapseMonitor().check(random(256, 128), 0)["feature_std"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("batch", [32, 256, 1000])
@pytest.mark.parametrize("name,plant", [
    ("constant", lambda b, s: random(1, 64).expand(b, -1)), ("zero", lambda b, s: torch.zeros(b, 64)),
    ("nearly constant", lambda b, s: random(1, 64) + 1e-5 * random(b, 64, s)),
    ("rank one", lambda b, s: rank_one(b, 64, s)),
    ("rank one, half precision", lambda b, s: rank_one(b, 64, s).bfloat16()),
    ("rank one, positive", lambda b, s: rank_one(b, 64, s).abs())])
def test_planted_collapse_stops_within_200_steps(name, plant, batch):
    step, text = stopped_at(lambda s: plant(batch, s))
    assert step is not None and 150 <= step < 200  # never healthy: no hasty alarm either
    assert "collapsed" in text and "threshold 0.001" in text and "threshold 1.5" in text and "learning rate" in text


def test_collapse_after_health_stops_after_three_checks():
    for late in (lambda s: rank_one(step=s), lambda s: torch.ones(32, 64)):
        step, text = stopped_at(lambda s, late=late: random(32, 64, s) if s < 100 else late(s))
        assert step == 140 and "3 checks in a row" in text


def test_a_common_mean_that_swamps_everything_counts_only_after_health():
    def swamped(step):
        return 5e2 + random(32, 64, step)

    assert stopped_at(swamped) == (None, "")
    step, text = stopped_at(lambda s: random(32, 64, s) if s < 100 else swamped(s))
    assert step == 140 and " effective rank 1." in text


def test_a_healthy_check_in_between_starts_the_count_again():
    assert stopped_at(lambda s: random(32, 64, s) if s % 60 == 0 else rank_one(step=s)) == (None, "")


@pytest.mark.parametrize("dim", [64, 128, 256, 512])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_no_alarm_on_healthy_features(dim, mean):
    assert stopped_at(lambda s: random(32, dim, s, mean)) == (None, "")
    assert stopped_at(lambda s: random(32, dim, s, mean).relu()) == (None, "")


@pytest.mark.parametrize("batch,dim", [(32, 1), (32, 2), (32, 3), (32, 4), (2, 64), (3, 64), (4, 8), (1, 8), (5, 5)])
def test_no_alarm_on_few_dimensions_or_samples(batch, dim):
    assert stopped_at(lambda s: random(batch, dim, s)) == (None, "")
    assert stopped_at(lambda s: random(batch, dim, s).abs() + 0.1) == (None, "")


def test_nothing_to_say_on_one_sample_or_bad_numbers():
    monitor = CollapseMonitor()
    assert monitor.check(torch.ones(1, 8), 0) == {}
    assert monitor.check(torch.full((8, 8), float("nan")), 0) == {}


def test_thresholds_and_patience_can_be_set():
    monitor = CollapseMonitor(std=0.5, patience=1, grace=0)
    with pytest.raises(MonitorStop, match="threshold 0.5"):
        monitor.check(random(32, 64, mean=5.0), 0)


def test_call_measures_every_so_often():
    monitor = CollapseMonitor(every=5)
    assert [bool(monitor(random(8, 8), s)) for s in range(7)] == [True, False, False, False, False, True, False]


def test_state_carries_health_over_a_resume():
    monitor = CollapseMonitor()
    monitor.check(random(32, 64), 0)
    monitor.check(rank_one(), 20)
    again = CollapseMonitor()
    again.load_state_dict(monitor.state_dict())
    again.check(rank_one(), 40)
    with pytest.raises(MonitorStop):
        again.check(rank_one(), 60)


def test_the_check_does_not_touch_the_features_or_their_graph():
    x = random(8, 8).requires_grad_()
    before = x.detach().clone()
    CollapseMonitor().check(x * 1.0, 0)
    assert torch.equal(x, before) and x.grad is None


# -- numbers ----------------------------------------------------------------------------------------------------------


def loss(total=1.0, **parts):
    return Loss(torch.tensor(total), {k: torch.tensor(v) for k, v in parts.items()})


def named(*grads):
    pairs = []
    for i, grad in enumerate(grads):
        p = nn.Parameter(torch.zeros(2))
        p.grad = None if grad is None else torch.tensor([0.0, grad])
        pairs.append((f"layer{i}.weight", p))
    return pairs


def test_finite_numbers_pass_and_gradients_are_not_searched():
    NumberMonitor().check(loss(a=1.0), 2.0, iter([("x", None)]), 0)
    NumberMonitor().check(Loss(torch.tensor(1.0)), torch.tensor(0.0), [], 0, [])


def test_the_term_at_fault_is_named():
    with pytest.raises(MonitorStop) as caught:
        NumberMonitor().check(loss(math.nan, good=1.0, variance=math.nan, far=-math.inf), 1.0, [], 12,
                              torch.arange(100, 110))
    text = str(caught.value)
    assert "The loss term 'variance' is NaN" in text and "'far' is infinite" in text and "good" not in text
    assert "step 12, samples 100, 101, 102, 103, 104, 105, 106, 107 and 2 more" in text
    assert "learning rate" in caught.value.fix and caught.value.code == 4


def test_the_total_alone_is_named():
    with pytest.raises(MonitorStop, match="^The loss is infinite"):
        NumberMonitor().check(loss(math.inf, a=1.0), 1.0, [], 0, ["a.png"])


def test_the_parameter_at_fault_is_named():
    with pytest.raises(MonitorStop, match="^The gradient of 'layer1.weight' is NaN") as caught:
        NumberMonitor().check(loss(), math.nan, named(1.0, math.nan, None, 3.0), 3)
    assert "layer0" not in str(caught.value) and "layer3" not in str(caught.value)
    with pytest.raises(MonitorStop, match="and 2 more"):
        NumberMonitor().check(loss(), math.inf, named(*[math.inf] * 5), 3)


def test_an_overflowing_norm_of_finite_gradients_is_named():
    with pytest.raises(MonitorStop, match="joint norm of the gradients is inf"):
        NumberMonitor().check(loss(), math.inf, named(1e38), 3)


def test_an_ordinary_step_is_cheap():
    numbers, collapse = NumberMonitor(), CollapseMonitor()
    value, pairs, features = loss(a=1.0, b=2.0, c=3.0), named(1.0, 2.0), random(256, 512)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(100):
            numbers.check(value, 1.0, pairs, 1)
            collapse(features, 1)
        best = min(best, (time.process_time() - start) / 100)
    assert best < 2e-4, f"{best * 1e3:.3f} ms a step"
