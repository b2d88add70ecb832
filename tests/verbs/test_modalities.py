"""What verbs say to data of a modality that a method is not defined for, and the whole way of one that is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.verbs._model import fit_samples, load_trained
from osteon.verbs.adapt import adapt
from osteon.verbs.analyse import analyse
from osteon.verbs.compare import compare
from osteon.verbs.compress import compress
from osteon.verbs.embed import embed
from osteon.verbs.evaluate import evaluate
from osteon.verbs.export import export
from osteon.verbs.pretrain import pretrain
from osteon.verbs.select import select

SETTINGS = {"limit": 60, "bands": 16, "backbone.dim": 16, "backbone.depth": 1, "backbone.heads": 2,
            "backbone.patch": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step on generated tones."""
    return pretrain("tones:train", objective="mae", backbone="vit_tiny", steps=2, batch_size=8, settings=SETTINGS,
                    out=tmp_path_factory.mktemp("sound") / "run", progress=False)


def test_a_run_remembers_its_modality_and_reads_other_sources_like_its_own(run, tmp_path):
    assert (run / "report.html").stat().st_size > 10_000
    out = embed(run, "tones:test", out=tmp_path / "features")
    assert np.load(out / "features.npy").shape == (600, 16)
    folder = export(run, out=tmp_path / "exported")
    config = json.loads((folder / "config.json").read_text())["preprocessing"]
    assert config["modality"] == "sound" and config["extent"] == [16, 32] and config["traits"]["rate"] == 4000


def test_evaluation_has_the_controls_of_the_modality(run, tmp_path):
    found = evaluate(run, train="tones:train", test="tones:test", metrics=("ncm",), label_budget=(60,), seeds=1,
                     scratch_steps=1, out=tmp_path, progress=False)
    assert {a["source"] for a in found["arms"]} == {"mae", "MFCC statistics", "mean spectrum", "raw spectrogram",
                                                    "untrained vit_tiny", "vit_tiny from scratch"}


def test_a_table_has_classifiers_that_read_labels_themselves(tmp_path):
    made = pretrain("iris:train", objective="simmim", backbone="vit_tiny", steps=1, batch_size=8, progress=False,
                    settings={"backbone.dim": 16, "backbone.depth": 1}, out=tmp_path / "run")
    found = evaluate(made, train="iris:train", test="iris:test", metrics=("ncm",), seeds=1, scratch_steps=0,
                     leaks="allow", progress=False)
    scores = {a["name"]: a["mean"] for a in found["arms"]}
    assert scores["gradient-boosted trees"] > 0.8 and scores["logistic regression"] > 0.8


def text_run(out):
    """A run of one step on generated text."""
    return pretrain("sentences:train", objective="simmim", backbone="vit_tiny", steps=1, batch_size=8, out=out,
                    settings={"limit": 60, "backbone.dim": 16, "backbone.depth": 2}, progress=False)


@pytest.mark.parametrize(("verb", "words"), [
    (lambda run, out: adapt(text_run(out.with_name("text")), train="sentences:train", val="sentences:test",
                            adapter="lst", out=out), "Adapter 'lst' is not defined for text"),
    (lambda run, out: compress(text_run(out.with_name("text")), data="sentences:train", method="zero_tprune",
                               budget="flops=0.5", out=out), "not defined for text; .*: words, nodes and members"),
    (lambda run, out: select("tones:train", method="near_duplicates", budget="10", out=out.with_suffix(".csv"),
                             settings={"similarity": "hash"}), "is of pictures"),
    (lambda run, out: pretrain("tones:train", objective="spark", out=out), "Objective 'spark' is not defined"),
    (lambda run, out: pretrain("tones:train", objective="mae", backbone="timm:vit_tiny_patch16_224", out=out),
     "takes square images"),
    (lambda run, out: compare("tones:train", train="tones:train", test="tones:test", recipes="spark", out=out,
                              progress=False), "Objective 'spark' is not defined"),
    (lambda run, out: analyse(run, "tones:test", against=text_run(out.with_name("text")), out=out),
     "different modalities"),
    (lambda run, out: pretrain("digits:train", objective="mae", init=run, out=out), "was trained on sound"),
], ids=["adapt", "compress", "select", "pretrain", "backbone", "compare", "analyse", "init"])
def test_what_is_not_defined_is_refused_in_words_before_anything_is_computed(run, tmp_path, verb, words):
    with pytest.raises(UsageError, match=words):
        verb(run, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_other_data_than_the_models_is_refused(run, tmp_path):
    with pytest.raises((UsageError, DataError), match="sound|recording|trained on"):
        embed(run, str(tmp_path), out=tmp_path / "features")


def test_compress_analyse_and_select_go_the_whole_way_with_sound(run, tmp_path):
    made = compress(run, data="tones:train", method="pela", budget="params=0.7", out=tmp_path / "small", progress=False,
                    settings={"limit": 60, "steps": 2, "batch_size": 8, "calibration": 16, "control": False})
    rows = {row["name"]: row for row in json.loads((made / "compression.json").read_text())["rows"]}
    assert rows["pela"]["params"] <= 0.7 * rows["original"]["params"] and rows["pela"]["latency_64_ms"] > 0
    assert set(rows["pela"]["scores"]) == {"knn", "linear_probe"}
    program = torch.export.load(made / "program.pt2").module()
    small = load_trained(made)
    data = open_source("tones:test", limit=5, like=small.spec)
    x = fit_samples(data, small.spec, np.arange(5))
    with torch.no_grad():
        torch.testing.assert_close(program(x), small.backbone(x).pooled, atol=1e-5, rtol=1e-5)
    found = analyse(made, "tones:test", samples=40, out=tmp_path / "look", progress=False)
    assert {s["name"] for s in found["sections"] if s["skipped"]} <= {"projection_head", "ood", "linearity"}
    assert "feasibility" not in {s["name"] for s in found["sections"]}
    chosen = select("tones:train", method="k_centre", budget=5, run=made, out=tmp_path / "ids.csv", progress=False)
    without = select("tones:train", method="k_centre", budget=5, out=tmp_path / "more.csv", progress=False)
    assert chosen["ids"] != without["ids"] and any("MFCC statistics" in n for n in without["notes"])
