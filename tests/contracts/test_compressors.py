"""What every registered compressor must satisfy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.parts.compressor import Budget, measure
from osteon.parts.surgery import apply_edits, edits_of, tensors_of
from osteon.verbs._compress_program import write_program
from tests.contracts.compressor_kit import CASES, build, calibration, fit_on, network

NAMES = [card.name for card in registry.cards("compressor")]
PAIRS = [(name, kind) for name in NAMES for kind in registry.find("compressor", name).backbones]


def made(name: str, kind: str):
    data, original = calibration(), network(kind)
    return original, data, build(name)(original, Budget.parse(CASES[name][0]), data, fit_on(data, steps=2))


@pytest.mark.parametrize("name, kind", PAIRS)
def test_the_budget_is_met_the_original_is_left_alone_and_the_result_rebuilds_from_text_and_tensors(name, kind,
                                                                                                   tmp_path):
    before = {k: v.clone() for k, v in network(kind).state_dict().items()}
    original, data, result = made(name, kind)
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
    assert not edits_of(original)
    budget = Budget.parse(CASES[name][0])
    whole, small = measure(original), measure(result)
    assert budget.met(small, whole)
    assert getattr(small, budget.unit) > 0.75 * budget.limit(whole), "much more was taken than the budget asks for"
    write_tensors(tmp_path / "model.safetensors", tensors_of(result), {"edits": edits_of(result)})
    state, meta = read_tensors(tmp_path / "model.safetensors")
    again = apply_edits(build_backbone(result.name, channels=3, size=16, **result.options), meta["edits"])
    again.load_state_dict(state)
    x = next(data.batches())
    with torch.no_grad():
        assert torch.equal(again.eval()(x).pooled, result(x).pooled)
        assert not result.training and torch.isfinite(result(x).pooled).all()


@pytest.mark.parametrize("name, kind", PAIRS)
def test_zero_compression_is_the_identity(name, kind):
    data, original = calibration(), network(kind)
    result = build(name)(original, Budget(build(name).units[0], 1.0), data)
    assert not edits_of(result) and result is not original
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in result.state_dict().items())


@pytest.mark.parametrize("name, kind", PAIRS)
def test_an_impossible_budget_says_what_is_possible_and_another_unit_is_refused(name, kind):
    data, original, method = calibration(), network(kind), build(name)
    with pytest.raises(UsageError, match=r"goes down to .* %"):
        method(original, Budget(method.units[0], 1e-6), data, fit_on(data, steps=0))
    for unit in {"params", "flops", "bytes"} - set(method.units):
        with pytest.raises(UsageError, match="works to"):
            method(original, Budget(unit, 0.5), data)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_network(name):
    kind = registry.find("compressor", name).backbones[0]
    first, second = made(name, kind)[2], made(name, kind)[2]
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


FRESH = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
assert not any(name.startswith("osteon") for name in sys.modules)
"""


@pytest.mark.slow
def test_the_programs_run_in_a_fresh_process_with_plain_torch(tmp_path):
    wanted = {}
    for name in NAMES:
        _, data, result = made(name, registry.find("compressor", name).backbones[0])
        write_program(tmp_path / f"{name}.pt2", result, 3, (16, 16))
        x = next(data.batches())
        wanted[name] = result(x).pooled
    torch.save(x, tmp_path / "x.pt")
    for name in NAMES:
        subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, *(str(tmp_path / n) for n in (
            f"{name}.pt2", "x.pt", "y.pt"))], check=True, cwd=tmp_path)
        assert torch.allclose(torch.load(tmp_path / "y.pt"), wanted[name], atol=1e-5)
