"""Mixtures through the public verb: exact resume over the switch, and the worth of a source from one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from osteon.core.errors import InUseError, UsageError
from osteon.core.run import RunFolder
from osteon.verbs.leave_one_out import leave_one_out
from osteon.verbs.pretrain import pretrain

COMMON = {"objective": "clm", "backbone": "vit_tiny", "batch_size": 8, "progress": False, "report": False}
SMALL = {"backbone.dim": 16, "backbone.depth": 1, "backbone.heads": 2, "tokenizer": "char", "window": 16,
         "log_every": 1, "collapse_stop": False}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, letters in (("base", "abcd "), ("few", "dcba "), ("more", "aabb ")):
        (folder / name).mkdir()
        for n in range(3):
            (folder / name / f"{n}.txt").write_text((letters * 40)[n:] + "\n")
    return folder


def go(texts, out, **options):
    settings = {**SMALL, "mix": f"{texts}/few=0.125", "upsample": f"{texts}/few=0.5", "switch": 0.5,
                **options.pop("settings", {})}
    return pretrain(str(texts / "base"), out=out, steps=8, settings=settings, **{**COMMON, **options})


def weights(run) -> dict[str, torch.Tensor]:
    return RunFolder(Path(run)).load_model()[0]


def test_a_run_paused_before_at_and_after_the_switch_ends_the_same(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path / "cache"))
    whole = weights(go(texts, tmp_path / "whole"))
    for until in (3, 4, 5):
        go(texts, tmp_path / f"{until}", until=until)
        parts = weights(go(texts, tmp_path / f"{until}"))
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    config = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert config["data"]["mix"] == {str((texts / "few").resolve()): 0.125} and config["data"]["switch"] == 0.5
    with pytest.raises(InUseError, match="switch"):
        go(texts, tmp_path / "whole", settings={"switch": 0.75})
    again = pretrain(str(texts / "base"), out=tmp_path / "again", config=tmp_path / "whole" / "config.yaml",
                     progress=False, report=False)
    assert all(torch.equal(value, weights(again)[key]) for key, value in whole.items())
    notes = json.loads((tmp_path / "whole" / "provenance.json").read_text())["notes"]
    assert sum(str(n).startswith("mixture:") for n in notes) == 2 and any("before step 4" in str(n) for n in notes)
    plain = weights(go(texts, tmp_path / "plain", settings={"upsample": {}}))
    assert any(not torch.equal(value, plain[key]) for key, value in whole.items())


def test_branches_start_from_one_checkpoint_and_differ_by_the_source_left_out(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path / "cache"))
    upsample = {f"{texts}/few": 0.25, f"{texts}/more": 0.25}

    def judge(run: Path) -> dict[str, float]:
        return {"first": float(next(iter(weights(run).values())).sum())}

    def call():
        return leave_one_out(str(texts / "base"), upsample=upsample, mix=f"{texts}/few=0.125", switch=0.5, steps=8,
                             out=tmp_path / "out", judge=judge, settings=SMALL, **COMMON)

    rows = call()
    assert [r["branch"] for r in rows] == ["all", "unchanged", "without-1", "without-2"]
    assert [r["left_out"] for r in rows] == [None, None, f"{texts}/few", f"{texts}/more"]
    assert len({r["first"] for r in rows}) == 4
    assert json.loads((tmp_path / "out/leave_one_out.json").read_text()) == rows
    losses = [[row["loss"] for row in RunFolder(Path(r["run"])).metrics() if "loss" in row] for r in rows]
    assert all(len(found) == 8 and found[:4] == losses[0][:4] for found in losses)
    alone = pretrain(str(texts / "base"), out=tmp_path / "alone", steps=8, **COMMON, settings={
        **SMALL, "mix": f"{texts}/few=0.125", "switch": 0.5,
        "upsample": {f"{texts}/few": 0.25, f"{texts}/more": 0.0}})
    assert all(torch.equal(value, weights(alone)[key]) for key, value in weights(rows[3]["run"]).items())
    assert call() == rows


def test_nothing_to_leave_out_is_refused(texts, tmp_path):
    for wish in ({"upsample": None}, {"upsample": f"{texts}/few=0.5", "switch": 1.0}):
        with pytest.raises(UsageError, match="no source to leave out"):
            leave_one_out(str(texts / "base"), out=tmp_path / "x", steps=8, judge=lambda _run: {}, **wish)
