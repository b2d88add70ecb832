"""Matching members of sets through the public verb."""

from __future__ import annotations

import json

import pytest
import torch

from osteon import match
from osteon.backbones import build_backbone
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.modalities import find
from osteon.verbs._model import save_trained
from osteon.verbs.match import summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Untrained towers with a shared space, which is all that matching reads."""
    data = open_source("numbers:train", cache=False)
    torch.manual_seed(1)
    network = build_backbone("towers", channels=1, size=data.spec.extent, encoder="vit_tiny", joint=8,
                             **find("several").backbone_options(data.spec))
    with torch.no_grad():  # so that beeps and digits lie somewhere else than everything else
        for p in network.maps.parameters():
            p.mul_(3)
    folder = RunFolder(tmp_path_factory.mktemp("match") / "run")
    with folder.lock():
        folder.create_or_resume({"source": "numbers"})
        save_trained(folder, network, data.spec, {"objective": {"name": "clip", "options": {}}, "steps": 0})
    return folder.path


def test_scores_beside_chance_and_the_untrained(run, tmp_path):
    result = match(run, test="numbers:test", train="numbers:train", out=tmp_path, progress=False)
    assert result["members"] == ["image", "sound", "text"] and len(result["retrieval"]) == 12
    data = open_source("numbers:test", cache=False)
    flags = data.images[:, 0, :3] > 0.5
    for row in result["retrieval"]:
        a, b = (result["members"].index(row[k]) for k in ("from", "to"))
        assert row["queries"] == int((flags[:, a] & flags[:, b]).sum())
        assert row["chance@10"] == pytest.approx(1000 / row["queries"])
        assert row["recall@1"]["mean"] <= row["recall@5"]["mean"] <= row["recall@10"]["mean"]
        assert row["recall@10"]["low"] <= row["recall@10"]["mean"] <= row["recall@10"]["high"]
    assert {(r["network"], r["of"], r["by"]) for r in result["zero_shot"]} == {
        (n, a, f"examples of {b}") for n in ("pretrained", "untrained") for a in result["members"]
        for b in result["members"] if a != b}
    assert any("does not tell them apart" in note for note in result["notes"])  # no digit is in the vocabulary
    assert json.loads((tmp_path / "match.json").read_text())["retrieval"] == result["retrieval"]
    page = (tmp_path / "match.html").read_text()
    assert "find its partner" in page and "<img" in page and "chance" in summary(result)


def test_classes_are_named_by_texts(run, tmp_path):
    result = match(run, test="numbers:test", prompts=["{} odd even", "this {}"], out=tmp_path, progress=False)
    assert result["zero_shot"] == []  # names of one unknown letter are all the same
    with pytest.raises(UsageError, match="no place for the class"):
        match(run, test="numbers:test", prompts=["a digit"], out=tmp_path, progress=False)


def test_names_the_vocabulary_knows(run, tmp_path):
    data = open_source("numbers:test", cache=False)
    data.class_names = ["odd", "even", "below", "five", "more", "number", "this", "here", "wrote", "hear"]
    result = match(run, test=data, out=tmp_path, progress=False)
    rows = [r for r in result["zero_shot"] if r["network"] == "pretrained"]
    assert [(r["of"], r["by"]) for r in rows] == [("image", "names of the classes"), ("sound", "names of the classes")]
    assert all(0 <= r["accuracy"]["mean"] <= 100 and r["chance"] == 10 for r in rows)


def test_one_modality_alone_is_classified_by_another(run, tmp_path):
    result = match(run, test="digits:test", train="numbers:train", out=tmp_path, progress=False)
    assert result["retrieval"] == [] and {r["of"] for r in result["zero_shot"]} == {"image"}
    assert (tmp_path / "match.html").is_file()


def test_what_cannot_be_matched(run, tmp_path):
    data = open_source("numbers:test", cache=False)
    with pytest.raises(DataError, match="one label each"):
        bare = open_source("numbers:train", cache=False)
        bare.labels = None
        match(run, test="numbers:test", train=bare, out=tmp_path, progress=False)
    other = open_source("numbers:train", cache=False)
    other.class_names = list("abcdefghij")
    with pytest.raises(DataError, match="classes of --train"):
        match(run, test=data, train=other, out=tmp_path, progress=False)
    with pytest.raises(DataError, match="trained on image, sound, text"):
        match(run, test="waves", out=tmp_path, progress=False)


def test_a_run_of_one_modality_is_refused(tmp_path):
    spec = open_source("digits:train", cache=False).spec
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        folder.create_or_resume({"source": "digits"})
        save_trained(folder, build_backbone("vit_tiny", channels=1, size=8), spec, {"objective": {"name": "mae"}})
    with pytest.raises(UsageError, match="no space that modalities share"):
        match(folder.path, test="numbers:test", progress=False)
