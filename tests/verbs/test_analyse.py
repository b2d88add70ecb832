from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.verbs.conftest import QUICK

import osteon
from osteon.core.errors import UsageError
from osteon.verbs._analyses import ANALYSES, ON_REQUEST
from osteon.verbs.analyse import analyse, summary
from osteon.verbs.pretrain import pretrain


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    return pretrain("digits:train", out=tmp_path_factory.mktemp("runs") / "vit", **{**QUICK, "backbone": "vit_tiny"})


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory) -> Path:
    return pretrain("digits:train", out=tmp_path_factory.mktemp("runs") / "conv", **QUICK)


@pytest.fixture(scope="module")
def found(convolutional: Path, vit: Path, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("noise")
    np.savez(folder / "noise.npz", image=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8))
    out = folder / "out"
    return analyse(convolutional, "digits:test", against=vit, ood=folder / "noise.npz", samples=300, out=out,
                   progress=False), out


def section(result: dict, name: str) -> dict:
    return next(s for s in result["sections"] if s["name"] == name)


def test_every_analysis_runs_and_every_finding_has_threshold_and_source(found: tuple[dict, Path]) -> None:
    result, out = found
    assert [s["name"] for s in result["sections"]] == [n for n in ANALYSES if n not in ON_REQUEST]
    assert all(not s["skipped"] and s["findings"] and s["rows"] for s in result["sections"])
    every = [f for s in result["sections"] for f in s["findings"]]
    assert all(f["threshold"] and "(" in f["source"] for f in every)
    assert all(f["value"] is not None for f in every)
    assert len(result["healthy"]) + len(result["unhealthy"]) == sum(f["healthy"] is not None for f in every)
    stored = json.loads((out / "analysis.json").read_text())
    assert stored == {k: v for k, v in result.items() if k != "report"}
    text = summary(result)
    assert all(f["what"] in text for f in every)
    assert osteon.analyse is analyse


def test_the_page_holds_every_finding_and_asks_nothing_of_the_network(found: tuple[dict, Path]) -> None:
    result, out = found
    page = (out / "analysis.html").read_text()
    assert result["report"] == str(out / "analysis.html")
    for s in result["sections"]:
        assert all(f["what"] in page for f in s["findings"]) and s["title"] in page
    assert not any(mark in page for mark in ('src="http', 'href="http', "url(http", "<script"))


def test_numbers_are_those_of_the_parts(found: tuple[dict, Path], convolutional: Path) -> None:
    from osteon.data import open_source
    from osteon.evaluators.label_free import LabelFree
    from osteon.verbs._model import extract, load_trained

    result, _ = found
    model = load_trained(convolutional)
    data = open_source("digits:test", like=model.spec)
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:300])
    values = LabelFree()(extract(model.backbone, data.subset(rows), model.spec))
    by = {f["what"]: f["value"] for f in section(result, "spectrum")["findings"]}
    assert by["effective rank"] == pytest.approx(values["effective_rank"], rel=1e-4)
    shares = 10 ** np.array(section(result, "spectrum")["curve"]["log10 of the share of variance, by direction"])
    assert shares.sum() == pytest.approx(1) and (np.diff(shares) <= 0).all()
    assert section(result, "layer_masking")["findings"][0]["value"] <= 1e-5
    table = np.array([row[1:] for row in section(result, "cka")["rows"]], dtype=float)
    assert np.allclose(np.diag(table), 1) and np.allclose(table, table.T)
    noise = section(result, "ood")["findings"][0]["value"]
    assert noise > 0.9  # white noise is no digit


def test_what_does_not_fit_is_left_out_with_its_reason(vit: Path, archive, tmp_path: Path) -> None:
    bare = archive("bare.npz", 0, 40, labels=False)
    result = analyse(vit, bare, out=tmp_path, progress=False)
    left = {s["name"]: s["skipped"] for s in result["sections"] if s["skipped"]}
    assert set(left) == {"projection_head", "ood"}
    assert "labels" in left["projection_head"] and "--ood" in left["ood"]
    page = (tmp_path / "analysis.html").read_text()
    assert "Not on this page" in page
    assert "left out" in summary(result)


def test_collapsed_features_are_not_healthy(vit: Path, tmp_path: Path) -> None:
    import torch

    from osteon.core.tensorfile import read_tensors, write_tensors

    tensors, meta = read_tensors(vit / "model.safetensors")
    tensors["norm.weight"] = torch.zeros_like(tensors["norm.weight"])
    tensors["norm.bias"] = torch.ones_like(tensors["norm.bias"])
    write_tensors(tmp_path / "dead" / "model.safetensors", tensors, meta)
    result = analyse(tmp_path / "dead", "digits:test", only=["spectrum"], samples=100, out=tmp_path, progress=False)
    assert len(result["unhealthy"]) == 2 and "LOOK" in summary(result)
    assert "Look here" in (tmp_path / "analysis.html").read_text()


def test_intrinsic_dimension_on_request(convolutional: Path, tmp_path: Path) -> None:
    result = analyse(convolutional, "digits:test", only=["intrinsic-dimension"], samples=80, out=tmp_path,
                     settings={"directions": [3, 6], "fit_epochs": 1}, progress=False)
    assert [s["name"] for s in result["sections"]] == ["intrinsic_dimension"]
    rows = section(result, "intrinsic_dimension")["rows"]
    assert rows[0][0] == 3 and str(rows[-1][0]).startswith("all ")


@pytest.mark.parametrize(("options", "what"), [
    ({"only": ["spectra"]}, "Did you mean 'spectrum'"), ({"samples": 1}, "tell nothing"),
    ({"settings": {"direction": [3]}}, "Did you mean 'directions'"), ({"settings": {"fit_epochs": 0}}, "at least 1")])
def test_what_cannot_be(vit: Path, tmp_path: Path, options: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        analyse(vit, "digits:test", out=tmp_path / "o", progress=False, **options)
    assert not (tmp_path / "o").exists()


def test_the_command(vit: Path, tmp_path: Path, capsys) -> None:
    from osteon import cli

    for words in ([], ["--json"]):
        with pytest.raises(SystemExit) as leaving:
            cli.main(["analyse", str(vit), "digits:test", "--only", "spectrum,cka", "--samples", "60", "--out",
                      str(tmp_path), "-q", *words])
        printed = capsys.readouterr().out
        assert leaving.value.code == 0
    assert json.loads(printed)["samples"] == 60
