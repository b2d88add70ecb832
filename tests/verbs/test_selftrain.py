"""Self-training through the public verb: who taught whom, what each stage saw, controls of equal cost, and leaks."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import osteon
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors
from osteon.data import Dataset, open_source
from osteon.parts.pseudo_labels import Labelled
from osteon.verbs._selftrain_pool import pseudo_labelled, told_of, without_copies
from osteon.verbs.adapt import adapt, predict
from osteon.verbs.selftrain import selftrain, summary

LABELLED = 60
QUICK = {"steps": 3, "pool_steps": 4, "seed": 3, "min_conf": 0.1, "progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selftrain")
    before = os.environ.get("OSTEON_CACHE")
    os.environ["OSTEON_CACHE"] = str(folder / "cache")
    digits = open_source("digits")
    for name, start, stop in (("train", 0, LABELLED), ("pool", 100, 220), ("test", 300, 360)):
        np.savez(folder / f"{name}.npz", image=np.array(digits.images[start:stop]).transpose(0, 2, 3, 1),
                 label=digits.labels[start:stop])
    run = osteon.pretrain(folder / "pool.npz", objective="simclr", backbone="vit_tiny", steps=2, batch_size=16,
                          out=folder / "run", progress=False, report=False,
                          settings={"backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 2, "temperature": 0.3})
    where = {"train": folder / "train.npz", "pool": folder / "pool.npz", "test": folder / "test.npz",
             "out": folder / "out"}
    yield selftrain(run, **where, **QUICK), run, where
    os.environ.pop("OSTEON_CACHE")
    if before is not None:
        os.environ["OSTEON_CACHE"] = before


def labelled(where) -> str:
    """Fingerprint of the whole labelled set, as a fit notes it."""
    return open_source(where["train"]).subset(np.arange(LABELLED)).fingerprint


def test_pseudo_labels_are_the_teachers_and_the_teacher_saw_the_labelled_set_alone(made):
    result, run, where = made
    config = RunFolder(where["out"] / "1-teacher").config()
    assert config["fingerprint"] == labelled(where) and config["base"]["run"] == str(run)
    teacher = osteon.load(where["out"] / "1-teacher")
    pool = open_source(where["pool"], like=teacher.spec)
    scores = predict(teacher.adapter, pool, teacher.spec)
    rows = list(csv.DictReader((where["out"] / "pseudo.csv").read_text().splitlines()))
    assert [r["id"] for r in rows] == pool.ids
    assert [int(r["label"]) for r in rows] == scores.argmax(1).tolist()
    assert [float(r["confidence"]) for r in rows] == pytest.approx(scores.max(1).tolist(), abs=1e-4)
    told = result["pool"]
    assert told["samples"] == 120 and told["kept"] == sum(int(r["kept"]) for r in rows) == (scores.max(1) >= 0.1).sum()
    assert told["agreement"] == pytest.approx(float((scores.argmax(1) == pool.labels)[scores.max(1) >= 0.1].mean()))
    middle = RunFolder(where["out"] / "2-pool").config()
    assert middle["base"]["run"] == str(run) and middle["label_budget"] == told["kept"]
    assert middle["train_source"] == str(where["pool"]) and middle["train"]["steps"] == 4
    assert middle["train"]["batch_size"] == config["train"]["batch_size"] == 8  # by the rule for 60 samples


def test_the_last_stage_sees_clean_labels_and_begins_where_the_middle_one_ended(made):
    _, _, where = made
    config = RunFolder(where["out"] / "3-clean").config()
    assert config["fingerprint"] == labelled(where) and config["keep_head"] is True
    assert config["base"]["run"] == str(where["out"] / "2-pool") and config["train"]["steps"] == 3
    assert "keep_head" not in RunFolder(where["out"] / "control").config()


def test_a_kept_head_gives_the_same_answers_before_it_learns(made, tmp_path):
    _, run, where = made
    before = osteon.load(where["out"] / "2-pool")
    after = osteon.load(adapt(where["out"] / "2-pool", train=where["train"], val=where["test"], adapter="full",
                              out=tmp_path / "again", steps=1, lr=0.0, keep_head=True, progress=False))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(after.adapter(x), before.adapter(x))
    with pytest.raises(UsageError, match="no classifier of these classes"):
        adapt(run, train=where["train"], val=where["test"], out=tmp_path / "no", steps=1, keep_head=True,
              progress=False)


def test_controls_cost_as_much(made):
    result, run, where = made
    assert set(result["arms"]) == {"teacher", "selftrained", "control", "continued"}
    control = RunFolder(where["out"] / "control").config()
    assert control["train"]["steps"] == 3 + 4 + 3 == result["arms"]["selftrained"]["steps"]
    assert control["base"]["run"] == str(run) and control["fingerprint"] == labelled(where)
    flop = result["flop"]
    assert flop["before_clean"] == pytest.approx(7 * flop["step"] + flop["labelling"])
    going_on = RunFolder(where["out"] / "continued").config()
    assert going_on["objective"] == "simclr" and going_on["objective_options"]["temperature"] == 0.3
    assert going_on["init"] == str(run)
    meta = read_tensors(where["out"] / "continued-clean" / "delta.safetensors")[1]
    assert meta["base"]["run"] == str(where["out"] / "continued") and meta["steps"] == 3
    assert any("of the operations" in note for note in result["notes"])


def test_gains_are_differences_on_the_test_samples(made):
    result, _, where = made
    score = {name: arm["scores"]["accuracy"] for name, arm in result["arms"].items()}
    for name, gain in result["gain"].items():
        assert gain["mean"] == pytest.approx(score["selftrained"] - score[name]) and gain["low"] <= gain["mean"]
    assert set(result["gain"]) == {"teacher", "control", "continued"}
    assert json.loads((where["out"] / "selftrain.json").read_text()) == result
    assert "against control" in summary(result) and "of 120 samples kept" in summary(result)


def test_copies_of_test_samples_may_not_lie_in_the_pool(made, tmp_path):
    _, run, where = made
    whole = open_source("digits", cache=False)
    pool, test = whole.subset(np.arange(40)), whole.subset(np.arange(30, 50))
    with pytest.raises(DataError, match="copies and 0 groups of test samples lie in the pool"):
        without_copies(pool, test, "error")
    twice = whole.subset([*range(40), *range(30, 40)])
    clean, notes = without_copies(twice, test, "drop")
    assert clean.ids == pool.ids[:30] and "10 exact" in notes[0]
    assert len(without_copies(pool, test, "allow")[0]) == 40
    with pytest.raises(DataError, match="Nothing of the pool is left"):
        without_copies(test, test, "drop")
    grouped = replace(pool, groups=["a"] * 5 + ["b"] * 35), replace(whole.subset([60, 61]), groups=["a", ""])
    with pytest.raises(DataError, match="1 groups"):
        without_copies(*grouped, "error")
    assert without_copies(*grouped, "drop")[0].ids == pool.ids[5:]
    with pytest.raises(DataError, match="pool"):
        selftrain(run, train=where["train"], pool=where["test"], test=where["test"], out=tmp_path / "o", **QUICK)
    assert not (tmp_path / "o" / "1-teacher").exists()  # before anything is trained
    for wrong in ({"leaks": "perhaps"}, {"min_conf": 2.0}, {"adapter": "lst"}, {"adapter": "nonsense"}):
        with pytest.raises(UsageError):
            selftrain(run, train=where["train"], pool=where["pool"], test=where["test"], out=tmp_path / "o",
                      **{**QUICK, **wrong})


def test_labels_of_the_pool_are_gone(made):
    _, _, where = made
    teacher = osteon.load(where["out"] / "1-teacher")
    pixels = np.random.default_rng(0).integers(0, 255, (4, 1, 8, 8), np.uint8)
    pool = Dataset.from_arrays(pixels, np.array([0, 1, 1, 0]), class_names=["x", "y"])
    found = Labelled(np.array([7, 3, 7, 1]), np.ones(4), np.array([True, False, True, True]))
    data = pseudo_labelled(pool, found, teacher)
    assert data.labels.tolist() == [7, 7, 1] and data.class_names == teacher.meta["class_names"] and len(data) == 3
    assert data.spec.num_classes == 10 and len(data.spec.class_weights) == 10 and data.spec.mean == teacher.spec.mean
    assert data.fingerprint != pseudo_labelled(pool, replace(found, labels=np.array([7, 3, 7, 2])), teacher).fingerprint
    told = told_of(pool, found, teacher)
    assert "agreement" not in told and told["classes"]["7"] == 2 and told["share"] == 0.75
