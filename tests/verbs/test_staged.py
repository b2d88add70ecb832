from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.verbs import staged as verb
from osteon.verbs.staged import Stage, staged


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    before = os.environ.get("OSTEON_CACHE")
    os.environ["OSTEON_CACHE"] = str(folder / "cache")
    found = staged("digits", stages=["mae:4", Stage("supervised", 3, {"lr": 0.0})], out=folder / "out",
                   backbone="vit_tiny", batch_size=32, settings={"limit": 200}, progress=False)
    yield found, folder / "out"
    os.environ.pop("OSTEON_CACHE")
    if before is not None:
        os.environ["OSTEON_CACHE"] = before


def weights(run):
    return RunFolder(Path(run)).load_model()[0]


def test_a_stage_starts_from_the_weights_of_the_one_before(made):
    """At a learning rate of 0 the second stage ends where the first did, bit for bit; its head is new."""
    found, out = made
    first, second = (weights(row["run"]) for row in found["stages"])
    assert set(first) == set(second) and all(torch.equal(v, second[k]) for k, v in first.items())
    assert [Path(row["run"]).name for row in found["stages"]] == ["1-mae", "2-supervised"]
    tensors = RunFolder(out / "2-supervised").latest_checkpoint()[1]
    assert not any("decoder" in name for name in tensors) and any("head" in name for name in tensors)


def test_the_control_takes_the_compute_of_all_stages_in_the_last_objective(made):
    found, out = made
    stages, control = found["stages"], found["control"]
    assert found["flop"] == sum(row["flop_step"] * row["steps"] for row in stages)
    assert control["objective"] == "supervised" and control["flop_step"] == stages[1]["flop_step"]
    assert control["steps"] == round(found["flop"] / stages[1]["flop_step"]) > 3
    assert abs(found["off"]) <= 0.5 / control["steps"]
    assert RunFolder(out / "control-supervised").config()["init"] is None
    assert json.loads((out / "staged.json").read_text()) == found


def test_calling_again_does_nothing_over(made, monkeypatch):
    found, out = made
    before = {p: p.stat().st_mtime_ns for p in out.rglob("step_*.safetensors")}
    again = staged("digits", stages=["mae:4", Stage("supervised", 3, {"lr": 0.0})], out=out, backbone="vit_tiny",
                   batch_size=32, settings={"limit": 200}, progress=False)
    assert again == found and before == {p: p.stat().st_mtime_ns for p in out.rglob("step_*.safetensors")}


@pytest.mark.parametrize(("stages", "words"), [
    (["mae:4"], "two or more"), (["mae", "byol:3"], "'mae' is no stage"), (["mae:0", "byol:3"], "no stage"),
    (["mae:4", "nonsense:3"], "nonsense")])
def test_what_makes_no_sense_is_refused(tmp_path, stages, words, monkeypatch):
    monkeypatch.setattr(verb, "pretrain", None)  # nothing may be computed
    monkeypatch.setattr(verb, "prepare", None)
    with pytest.raises(UsageError, match=words):
        staged("digits", stages=stages, out=tmp_path / "o", backbone="vit_tiny", settings={"limit": 100},
               progress=False)
