from __future__ import annotations

import pytest
from tests.contracts.compressor_kit import network
from torch import nn

from osteon.core.errors import UsageError
from osteon.parts.compact import Int8Linear, PackedLinear
from osteon.parts.compressor import Budget, Cost, amount, measure, params_of, search, spent


@pytest.mark.parametrize("text, unit, value, share", [
    ("params=0.3", "params", 0.3, True), ("flops=50%", "flops", 0.5, True), ("latency=5ms", "latency", 5, False),
    ("latency=0.2s", "latency", 200, False), ("bytes=2MB", "bytes", 2e6, False), ("bytes=1KiB", "bytes", 1024, False),
    ("params=1", "params", 1, True), ("params=200k", "params", 2e5, False), ("params=5", "params", 5, False)])
def test_budgets_are_read(text, unit, value, share):
    assert Budget.parse(text) == Budget(unit, value, share)


@pytest.mark.parametrize("text", ["params", "params=", "params=0", "params=120%", "parms=0.3", "bytes=2XB", "=0.3",
                                  "params=-1", "bytes=1.2.3"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_a_share_is_of_the_original_and_a_cost_stands_for_itself():
    whole = Cost(1000, 500, 4000)
    assert Budget("params", 0.3).limit(whole) == 300 and Budget("bytes", 100, share=False).limit(whole) == 100
    assert Budget("params", 0.3).met(Cost(300, 0, 0), whole) and not Budget("params", 0.3).met(Cost(301, 0, 0), whole)
    assert amount("bytes", 2.5e6) == "2.5 MB" and amount("params", 12) == "12"


def test_costs_of_a_layer_a_person_can_count():
    layer = nn.Linear(10, 4)
    assert params_of(layer) == 44 and params_of(Int8Linear(layer)) == 44
    assert params_of(PackedLinear(layer, bits=4, group=5, rank=2)) == 44 + 2 * 14
    net = network()
    cost = measure(net)
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert 4 * cost.params < cost.bytes < 4 * cost.params + 9000


def test_the_gentlest_network_within_the_budget_is_found():
    net, asked = network(), []

    def make(strength):
        asked.append(strength)
        thin = network()
        thin.blocks = thin.blocks[:4 - round(3 * strength)]
        return thin

    found, strength = search("cut", net, Budget("params", 0.6), make)
    assert len(found.blocks) == 2 and asked[0] == 1.0
    assert 0.5 <= strength < 0.51, "the smallest strength that rounds to two blocks"
    assert spent(found, "params") <= 0.6 * spent(net, "params")
    with pytest.raises(UsageError, match=r"goes down to .* Ask for params=0\.\d+ or more"):
        search("cut", net, Budget("params", 0.01), make)


def test_units_are_spent_as_they_are_measured():
    net = network()
    cost = measure(net)
    assert (spent(net, "params"), spent(net, "flops"), spent(net, "bytes")) == (cost.params, cost.flops, cost.bytes)
    assert spent(net, "latency") > 0
