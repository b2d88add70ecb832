from __future__ import annotations

import json

import pytest
import torch

from osteon import bandit
from osteon.core.errors import DataError, UsageError
from osteon.verbs.bandit import load_dpt, summary

SMALL = {"arms": 3, "rounds": 8, "steps": 4, "batch_size": 8, "dim": 8, "depth": 1, "tasks": 20, "progress": False}


def test_it_plays_beside_the_rules_and_can_be_played_again(tmp_path):
    first = bandit(out=tmp_path / "b", **SMALL)
    names = {arm["name"] for arm in first["arms"]}
    assert names == {"in context (DPT)", "Thompson sampling", "upper confidence bound", "greedy", "uniform"}
    for arm in first["arms"]:
        assert 0 <= arm["low"] <= arm["mean"] <= arm["high"]
        assert len(first["curves"][arm["name"]]) == 8
        assert first["curves"][arm["name"]][-1] == pytest.approx(arm["mean"], rel=1e-5)
    written = json.loads((tmp_path / "b" / "bandit.json").read_text())
    assert written["arms"] == first["arms"] and "Regret over the rounds" in (tmp_path / "b" / "bandit.html").read_text()
    before = (tmp_path / "b" / "dpt.safetensors").read_bytes()
    again = bandit(out=tmp_path / "b", **SMALL)
    assert again["arms"] == first["arms"] and (tmp_path / "b" / "dpt.safetensors").read_bytes() == before
    assert "in context (DPT)" in summary(first)
    network, meta = load_dpt(tmp_path / "b")
    assert meta["steps"] == 4 and isinstance(network.act(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)),
                                             torch.Tensor)


def test_another_network_in_the_folder_is_not_overwritten(tmp_path):
    bandit(out=tmp_path, **SMALL)
    with pytest.raises(UsageError, match="another network"):
        bandit(out=tmp_path, **{**SMALL, "dim": 16})


def test_damage_and_absence_are_said(tmp_path):
    with pytest.raises(UsageError, match="holds no network"):
        load_dpt(tmp_path)
    (tmp_path / "dpt.safetensors").write_bytes(b"no")
    with pytest.raises(DataError):
        load_dpt(tmp_path)
    with pytest.raises(UsageError, match="no interval"):
        bandit(out=tmp_path / "c", **{**SMALL, "tasks": 1})
