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
from osteon.modalities import NAMES as MODALITIES
from osteon.parts.compressor import Budget, measure
from osteon.parts.surgery import apply_edits, edits_of, tensors_of
from osteon.verbs._compress_program import write_program
from tests.contracts import modality_kit
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


#: which other modalities `make test` holds a method to; together they are all, and `make contracts` takes every pair
QUICK = {"structured_pruning": ("graph",), "int8": ("points", "several"), "pela": ("text",), "trp": ("sound",),
         "eora": ("table",), "zero_tprune": ("video",), "ssld": ("series",), "poa": ("text", "volume")}
ELSEWHERE = modality_kit.pairs("compressor", QUICK)


def made_on(name: str, modality: str):
    data = modality_kit.calibration(modality)
    original = modality_kit.network(modality, 4 if name == "zero_tprune" else 2)
    return original, build(name)(original, Budget.parse(CASES[name][0]), data, fit_on(data, steps=1))


@pytest.mark.parametrize("name, modality", ELSEWHERE)
def test_on_every_modality_the_budget_is_met_and_the_result_rebuilds_and_reads_real_samples(name, modality,
                                                                                                        tmp_path):
    original, result = made_on(name, modality)
    budget, whole, small = Budget.parse(CASES[name][0]), measure(original), measure(result)
    assert budget.met(small, whole) and whole.flops > 0
    again = apply_edits(build_backbone(result.name, channels=result.channels, size=result.size, **result.options),
                        edits_of(result))
    again.load_state_dict(result.state_dict())
    x = modality_kit.samples(modality)
    with torch.no_grad():
        features = result(x).pooled
        assert torch.equal(again.eval()(x).pooled, features)
        assert torch.isfinite(features).all() and features.std(0).max() > 1e-4
        for i in (0, 5):  # padding of one sample is none of another's
            torch.testing.assert_close(result(x[i:i + 1]).pooled, features[i:i + 1], atol=1e-4, rtol=1e-3)
    if modality_kit.LONG:
        write_program(tmp_path / "program.pt2", result)


@pytest.mark.parametrize("name", ["zero_tprune", "poa"])
def test_where_a_method_is_not_defined_the_reason_is_given(name):
    card = registry.find("compressor", name)
    with pytest.raises(UsageError, match="is not defined for graph; it is for image, .*: .{40}"):
        registry.need(card, "graph", where="--method")


def test_every_modality_is_held_to_in_short():
    assert {m for modalities in QUICK.values() for m in modalities} == set(MODALITIES[1:])
    assert set(QUICK) == set(NAMES)


FRESH = """
import sys, torch
for file in sys.argv[1:]:
    program = torch.export.load(file).module()
    torch.save(program(torch.load(file + ".x")), file + ".y")
assert not any(name.startswith("osteon") for name in sys.modules)
"""


@pytest.mark.slow
def test_the_programs_run_in_a_fresh_process_with_plain_torch(tmp_path):
    wanted, files = [], []
    for name in [*NAMES, "text", "graph"]:
        if name in NAMES:
            _, data, result = made(name, registry.find("compressor", name).backbones[0])
            x = next(data.batches())
        else:  # samples with padding
            result, x = made_on("int8", name)[1], modality_kit.samples(name)
            assert result.present(x) is not None
        files.append(str(write_program(tmp_path / f"{name}.pt2", result)))
        torch.save(x, files[-1] + ".x")
        wanted.append(result(x).pooled)
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, *files], check=True, cwd=tmp_path)
    for file, features in zip(files, wanted, strict=True):
        assert torch.allclose(torch.load(file + ".y"), features, atol=1e-5)
