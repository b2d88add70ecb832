from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import osteon
from osteon.core.errors import MissingExtra, UsageError
from osteon.data import open_source
from osteon.verbs._model import extract, fit_samples, load_trained
from osteon.verbs.export import export
from osteon.verbs.pretrain import pretrain

FRESH = """
import sys, json, numpy as np, torch, osteon
made = osteon.load(sys.argv[1])
images = np.load(sys.argv[2])
told = json.load(open(sys.argv[1] + "/config.json"))["preprocessing"]
assert told["order"].startswith("divide, resize")
x = torch.from_numpy(images).float() / told["divide_by"]
x = (x - torch.tensor(told["mean"]).view(1, -1, 1, 1)) / torch.tensor(told["std"]).view(1, -1, 1, 1)
with torch.no_grad():
    np.save(sys.argv[3], made.backbone(x).pooled.numpy())
"""


def test_a_fresh_process_gets_equal_features_from_the_folder_alone(tmp_path, trained, digits):
    folder = export(trained, out=tmp_path / "backbone")
    np.save(tmp_path / "images.npy", digits.images[:9])
    subprocess.run([sys.executable, "-c", FRESH, str(folder), str(tmp_path / "images.npy"), str(tmp_path / "out.npy")],
                   check=True, cwd=tmp_path)
    model = load_trained(trained)
    wanted = extract(model.backbone, digits.subset(np.arange(9)), model.spec)
    assert np.allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-6)


def test_the_folder_says_what_the_weights_need(tmp_path, trained):
    folder = export(trained, out=tmp_path / "backbone")
    told = json.loads((folder / "config.json").read_text())
    spec = load_trained(trained).spec
    assert told["preprocessing"]["mean"] == list(spec.mean) and told["preprocessing"]["divide_by"] == 255
    assert told["architecture"]["name"] == "resnet_tiny" and told["class_names"] == [str(i) for i in range(10)]
    assert told["objective"]["name"] == "simclr" and told["trained_on"]["source"] == "digits:train"
    loaded = osteon.load(folder)
    assert loaded.spec == spec and loaded.meta["steps"] == 4


def test_an_exported_folder_can_be_continued_embedded_and_exported_again(tmp_path, trained):
    folder = export(trained, out=tmp_path / "backbone")
    assert osteon.embed(folder, "digits:test", out=tmp_path / "features").exists()
    again = export(folder, out=tmp_path / "again")
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()
    out = pretrain("digits:train", out=tmp_path / "next", init=folder, steps=1, batch_size=16, progress=False,
                   report=False, settings={"limit": 32})
    assert load_trained(out).spec.mean == load_trained(trained).spec.mean


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path, trained):
    with pytest.raises(UsageError, match="Did you mean 'onnx'"):
        export(trained, out=tmp_path / "backbone", format="onx")
    assert not (tmp_path / "backbone").exists()


def test_onnx_without_its_packages_names_what_is_missing(tmp_path, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"osteon\[onnx\]"):
        export(trained, out=tmp_path / "backbone", format="onnx")


def test_onnx_gives_equal_features(tmp_path, trained, digits):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    folder = export(trained, out=tmp_path / "backbone", format="onnx")
    model = load_trained(trained)
    x = fit_samples(digits, model.spec, np.arange(5))
    got = onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, {"image": x.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(got, model.backbone(x).pooled.numpy(), atol=1e-5)


def test_a_source_is_not_needed_to_export(tmp_path, archive):
    source = archive("gone.npz", 0, 32)
    out = pretrain(source, out=tmp_path / "run", objective="simclr", backbone="resnet_tiny", steps=1, batch_size=16,
                   progress=False, report=False)
    mean = open_source(source).spec.mean
    source.unlink()
    assert osteon.load(export(out, out=tmp_path / "backbone")).spec.mean == mean


ALONE = {
    "timm": "import timm; made = timm.create_model('local-dir:' + sys.argv[1] + '/timm', pretrained=True).eval()",
    "torch.export": "made = torch.export.load(sys.argv[1] + '/program.pt2').module()",
    "hub-folder": "made = torch.export.load(sys.argv[1] + '/program.pt2').module()"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return pretrain("digits:train", out=tmp_path_factory.mktemp("runs") / "vit", **{
        "objective": "simclr", "backbone": "vit_tiny", "steps": 2, "batch_size": 16, "progress": False, "report": False,
        "settings": {"backbone.pool": "cls", "backbone.registers": 1, "backbone.layer_scale": 0.1, "limit": 64}})


@pytest.mark.parametrize("form", list(ALONE))
def test_other_programs_reload_it_in_a_fresh_process(tmp_path, vit, form):
    folder = export(vit, out=tmp_path / "out", format=form)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "x.npy", x.numpy())
    code = (f"import sys, numpy as np, torch; {ALONE[form]}\nx = torch.from_numpy(np.load(sys.argv[2]))\n"
            "np.save(sys.argv[3], made(x).detach().numpy())\n"
            "assert not any(n.startswith('osteon') for n in sys.modules)")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder), str(tmp_path / "x.npy"),
                    str(tmp_path / "y.npy")], check=True, cwd=tmp_path)
    with torch.no_grad():
        wanted = load_trained(vit).backbone(x).pooled.numpy()
    assert np.abs(np.load(tmp_path / "y.npy") - wanted).max() < 1e-5
    assert osteon.load(folder).meta["class_names"] == [str(i) for i in range(10)]
    if form == "timm":
        told = json.loads((folder / "timm" / "config.json").read_text())
        assert told["label_names"] == [str(i) for i in range(10)]
        assert told["pretrained_cfg"]["mean"] == list(load_trained(vit).spec.mean)


def test_a_program_holds_no_pickle(tmp_path, trained):
    import zipfile

    folder = export(trained, out=tmp_path / "out", format="torch.export")
    with zipfile.ZipFile(folder / "program.pt2") as file:
        assert not any(file.read(name)[:2] == b"\x80\x02" or file.read(name)[:4] == b"PK\x03\x04"
                       for name in file.namelist())


def test_a_hub_folder_tells_where_it_comes_from_and_what_it_scores(tmp_path, trained):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    text = (export(copy, out=tmp_path / "bare", format="hub-folder") / "README.md").read_text()
    assert "Not evaluated" in text and "`digits:train`" in text and "- random" in text and "`program.pt2`" in text
    assert "license: unknown" in text and "0, 1, 2, 3" in text and "for 4 steps" in text
    (copy / "evaluation.json").write_text(json.dumps({
        "metric": "accuracy", "test_samples": 99, "verdict": {"sentence": "It paid."},
        "arms": [{"name": "simclr", "kind": "pretrained", "budget": "all", "mean": 0.5, "low": 0.4, "high": 0.6}]}))
    text = (export(copy, out=tmp_path / "scored", format="hub-folder") / "README.md").read_text()
    assert "| simclr | pretrained | all | 50.0 [40.0, 60.0] |" in text and "It paid." in text


def test_what_timm_has_no_name_for_is_refused_before_anything_is_written(tmp_path, trained):
    with pytest.raises(UsageError, match="no network like resnet_tiny"):
        export(trained, out=tmp_path / "backbone", format="timm")
    assert not (tmp_path / "backbone").exists()


def test_licences_travel_from_run_to_run_and_into_the_card(tmp_path, trained):
    import yaml

    from osteon.core.licences import standing

    first = pretrain("digits:train", out=tmp_path / "first", init=trained, steps=1, batch_size=16, progress=False,
                     report=False, settings={"limit": 32, "data_license": "cc-by-4.0"})
    kept = json.loads((first / "provenance.json").read_text())
    assert kept["data"]["license"] == "cc-by-4.0" and kept["initial_weights"] == [
        {"name": "simclr", "license": "unknown", "data_license": "unknown"}]
    # as if those weights had been published by somebody
    kept["initial_weights"] = [{"name": "timm:x", "license": "cc-by-nc-4.0"}]
    (first / "provenance.json").write_text(json.dumps(kept))
    second = pretrain("digits:train", out=tmp_path / "second", init=first, steps=1, batch_size=16, progress=False,
                      report=False, settings={"limit": 32})
    text = (export(second, out=tmp_path / "hub", format="hub-folder") / "README.md").read_text()
    told = yaml.safe_load(text.split("---\n")[1])
    assert told["license"] == "cc-by-nc-4.0" and told["data_license"] == "unknown"
    assert ("- first, licence: cc-by-nc-4.0, its data's: cc-by-4.0\n  - timm:x, licence: cc-by-nc-4.0\n"
            "- Licence of these weights: cc-by-nc-4.0") in text and "unknown: ask whoever" in text
    again = export(tmp_path / "hub", out=tmp_path / "again", format="hub-folder", license="MyOwn 2: <b>",
                   data_license="mit")
    told = yaml.safe_load((again / "README.md").read_text().split("---\n")[1])
    assert told["license"] == "other" and told["license_name"] == "myown-2-b" and told["data_license"] == "mit"
    assert standing(again).license == "MyOwn 2: <b>" and standing(again).origins == standing(second).origins
    with pytest.raises(UsageError, match="short line of text"):
        export(second, out=tmp_path / "no", license="a\nlicense: mit")
    assert not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match="short line of text"):
        pretrain("digits:train", out=tmp_path / "no", steps=1, progress=False, settings={"data_license": 4})


def test_the_card_of_another_modality_speaks_of_its_samples_and_its_programs_run(tmp_path):
    import re

    run = pretrain("waves:train", objective="mae", backbone="vit_tiny", steps=1, batch_size=8, progress=False,
                   report=False, settings={"limit": 40, "backbone.dim": 16, "backbone.depth": 1}, out=tmp_path / "run")
    text = (export(run, out=tmp_path / "hub", format="hub-folder") / "README.md").read_text()
    assert "image" not in text and "pipeline_tag: feature-extraction" in text and "- series\n" in text
    spec = load_trained(run).spec
    assert f"Series of {spec.channels} x {spec.extent[0]} (time)" in text
    first, second = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(first.replace("FOLDER", str(tmp_path / "hub")).replace("SOURCE", "waves:test@" + str(_ids(tmp_path)))
         .replace('out="features"', f'out="{tmp_path / "features"}"'), {})
    assert np.load(tmp_path / "features" / "features.npy").shape == (2, 16)
    found = {"batch": torch.randn(2, spec.channels, *spec.extent)}
    exec(second.replace("FOLDER", str(tmp_path / "hub")), found)
    assert found["features"].shape == (2, 16)
    with pytest.raises(UsageError, match="timm has networks of images; this one reads series"):
        export(run, out=tmp_path / "timm", format="timm")


def _ids(folder):
    ids = open_source("waves:test").ids[:2]
    (folder / "ids.csv").write_text("\n".join(["id", *ids]) + "\n")
    return folder / "ids.csv"
