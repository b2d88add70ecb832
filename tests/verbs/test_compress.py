from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from osteon.core.errors import InUseError, UsageError
from osteon.data import open_source
from osteon.verbs._compress_report import kept_bytes, table
from osteon.verbs._model import extract, load_trained
from osteon.verbs.compress import CONTROL, compress, sort_settings, summary
from osteon.verbs.embed import embed
from osteon.verbs.export import export

FRESH = """
import sys, numpy as np, torch
x = torch.from_numpy(np.load(sys.argv[2]))
np.save(sys.argv[3], torch.export.load(sys.argv[1]).module()(x).detach().numpy())
assert not any(name.split(".")[0] == "osteon" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def small(trained, tmp_path_factory):
    """The digits run at half of its parameters."""
    return compress(trained, data="digits:train", method="structured_pruning", budget="params=0.5",
                    out=tmp_path_factory.mktemp("compressed") / "small", progress=False)


def test_costs_and_scores_stand_beside_the_original_and_the_control(small, trained):
    found = json.loads((small / "compression.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["original", "structured_pruning", CONTROL]
    assert rows["original"]["params"] == sum(p.numel() for p in load_trained(trained).backbone.parameters())
    for name in ("structured_pruning", CONTROL):
        assert rows[name]["params"] <= 0.5 * rows["original"]["params"]
        assert rows[name]["flops"] < rows["original"]["flops"] and rows[name]["bytes"] < rows["original"]["bytes"]
        assert 0 < rows[name]["saved_bytes"] < rows["original"]["saved_bytes"]
    for row in rows.values():
        assert row["latency_1_ms"] > 0 and row["latency_64_ms"] > 0
        for score in row["scores"].values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert found["val_samples"] == sum("held out" in n for n in found["notes"]) * 250 or found["val_samples"] > 200
    text = summary(small)
    assert "random pruning (control)" in text and "knn" in text and "budget params=0.5" in text


def test_the_program_needs_only_torch_and_every_verb_takes_the_folder(small, tmp_path, digits):
    model = load_trained(small)
    some = digits.subset(np.arange(7))
    wanted = extract(model.backbone, some, model.spec)
    from osteon.verbs._model import fit_samples

    np.save(tmp_path / "x.npy", fit_samples(some, model.spec, np.arange(7)).numpy())
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, str(small / "program.pt2"), str(tmp_path / "x.npy"),
                    str(tmp_path / "y.npy")], check=True, cwd=tmp_path)
    assert np.allclose(np.load(tmp_path / "y.npy"), wanted, atol=1e-5)
    assert embed(small, "digits:test", out=tmp_path / "features").exists()
    again = load_trained(export(small, out=tmp_path / "exported"))
    assert np.array_equal(extract(again.backbone, some, again.spec), wanted)
    assert model.meta["compressed"][0]["budget"] == "params=0.5" and model.meta["objective"]["name"] == "simclr"


def test_a_compressed_run_is_compressed_further(small, tmp_path):
    twice = compress(small, data="digits:train", method="int8", budget="bytes=0.5", out=tmp_path / "twice",
                     settings={"control": False, "limit": 300}, progress=False)
    meta = load_trained(twice).meta
    assert [c["method"] for c in meta["compressed"]] == ["structured_pruning", "int8"]
    assert [e["op"] for e in meta["backbone"]["edits"]] == ["shapes", "int8"]


def test_methods_that_train_resume_to_the_same_weights_and_other_settings_are_refused(trained, tmp_path):
    call = {"data": "digits:train", "method": "pela", "budget": "params=0.6", "progress": False,
            "settings": {"steps": 3, "batch_size": 16, "control": False, "limit": 300}}
    first = compress(trained, out=tmp_path / "a", **call)
    assert len((first / "metrics.jsonl").read_text().splitlines()) >= 1
    before = load_trained(first).backbone.state_dict()
    again = load_trained(compress(trained, out=tmp_path / "a", **call)).backbone.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in before.items())
    with pytest.raises(InUseError, match="budget"):
        compress(trained, out=tmp_path / "a", **{**call, "budget": "params=0.7"})


@pytest.mark.parametrize("change, error", [
    ({"budget": "params"}, "no budget"), ({"method": "struct_pruning"}, "Did you mean"),
    ({"budget": "params=0.001"}, "goes down to"), ({"method": "int8"}, "works to bytes"),
    ({"settings": {"importanc": "random"}}, "importance"), ({"settings": {"held_out": 2}}, "held_out"),
    ({"settings": {"importance": "none"}}, "importance"),
    ({"method": "zero_tprune", "budget": "flops=0.5"}, "takes networks of tokens")])
def test_bad_input_is_a_clear_error_and_leaves_no_model(trained, tmp_path, change, error):
    call = {"data": "digits:train", "method": "structured_pruning", "budget": "params=0.5", "progress": False,
            "settings": {"limit": 60}}
    with pytest.raises(UsageError, match=error):
        compress(trained, out=tmp_path / "out", **{**call, **change})
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_data_without_labels_gives_costs_and_says_so(trained, tmp_path, archive):
    out = compress(trained, data=archive("bare.npz", 0, 80, labels=False), method="int8", budget="bytes=0.6",
                   out=tmp_path / "out", settings={"control": False}, progress=False)
    assert "accuracy was not measured" in summary(out)
    with pytest.raises(UsageError, match="scored by labels"):
        compress(trained, data=archive("bare.npz", 0, 80, labels=False), val="digits:test", method="int8",
                 budget="bytes=0.6", out=tmp_path / "other", progress=False)


def test_copies_in_val_are_told(trained, tmp_path):
    out = compress(trained, data="digits:train", val="digits:train", method="int8", budget="bytes=0.6",
                   out=tmp_path / "out", settings={"control": False}, progress=False)
    assert any("LEAK" in n for n in json.loads((out / "compression.json").read_text())["notes"])


def test_settings_go_to_their_doors():
    doors = sort_settings({"importance": "random", "steps": 5, "calibration": 9}, "structured_pruning")
    assert doors["compressor"] == {"importance": "random"} and doors["train"] == {"steps": 5}
    assert doors["verb"]["calibration"] == 9 and doors["verb"]["control"] is True


def test_kept_bytes_by_hand():
    class Two(torch.nn.Module):
        channels, extent = 1, (2, 2)

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.layer(x.flatten(1)).square()  # keeps the input (16, 4) and the square's argument (16, 3)

        def example(self, count):
            return torch.zeros(count, 1, 2, 2)

    assert kept_bytes(Two()) == 4 * 16 * (4 + 3)


def test_the_table_gives_shares_of_the_first_row():
    row = {"name": "a", "params": 200, "flops": 1000, "bytes": 4000, "saved_bytes": 10, "latency_1_ms": 1.0,
           "latency_64_ms": 2.0}
    text = table([row, {**row, "name": "b", "params": 50}]).splitlines()
    assert "50 (25 %)" in text[2] and "%" not in text[1]


def test_the_held_out_part_is_neither_calibrated_nor_trained_on(trained):
    from osteon.verbs.compress import SETTINGS, _open

    parts = _open(load_trained(trained), "digits", None, {o.name: o.default for o in SETTINGS}, 0)
    whole = open_source("digits", like=load_trained(trained).spec)
    assert parts.test is not None and not set(parts.train.ids) & set(parts.test.ids)
    assert len(parts.train) + len(parts.test) == len(whole) and len(parts.calibration) == 512


def test_a_latency_budget_is_measured_met_and_kept_in_a_fresh_process(trained, tmp_path, monkeypatch):
    from osteon.parts import compressor

    def clock(network, batch, **other):  # a machine that takes a millisecond for 10,000 FLOPs, on every day alike
        return compressor.count_forward(network, torch.zeros(1, network.channels, *network.extent)) / 1e4

    monkeypatch.setattr(compressor, "milliseconds", clock)
    whole = clock(load_trained(trained).backbone, 1)
    run = compress(trained, data="digits:train", method="structured_pruning", budget=f"latency={0.6 * whole:.6f}ms",
                   out=tmp_path / "fast", settings={"limit": 200, "recover": False}, progress=False)
    found = json.loads((run / "compression.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    took = clock(load_trained(run).backbone, 1)
    assert list(rows) == ["original", "structured_pruning", CONTROL] and "latency" in found["budget"]
    assert 0.3 * whole < took <= 0.6 * whole, "the gentlest network within the budget"
    assert rows[CONTROL]["flops"] <= rows["structured_pruning"]["flops"] * (1 + 1e-9)
    program = torch.export.load(run / "program.pt2").module()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(program(x), load_trained(run).backbone(x).pooled, atol=1e-5)
    with pytest.raises(UsageError, match=r"cannot meet latency=.*goes down to .* ms"):
        compress(trained, data="digits:train", method="structured_pruning", budget="latency=0.000001ms",
                 out=tmp_path / "no", settings={"limit": 200}, progress=False)
