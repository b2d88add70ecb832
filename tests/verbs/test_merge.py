from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.verbs.conftest import QUICK

import osteon
from osteon.core.errors import DataError, UsageError
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.verbs._model import extract, load_trained
from osteon.verbs.adapt import adapt
from osteon.verbs.merge import merge, summary
from osteon.verbs.pretrain import pretrain


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return pretrain("digits:train", out=tmp_path_factory.mktemp("start") / "base", **QUICK)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start: Path) -> list[Path]:
    """Three runs that go on from one."""
    folder = tmp_path_factory.mktemp("members")
    return [pretrain("digits:train", out=folder / f"r{s}", init=start, seed=s, settings={"guard": False},
                     **{**QUICK, "backbone": "auto", "steps": 8}) for s in range(3)]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, start: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    return [adapt(start, train="digits:train", val="digits:test", adapter=a, steps=6, batch_size=32, seed=s,
                  out=folder / f"c{s}", progress=False) for s, a in enumerate(("full", "full", "bias"))]


def state(run: Path) -> dict:
    return read_tensors(run / "model.safetensors")[0]


def test_a_soup_is_a_run_like_any_other(runs: list[Path], tmp_path: Path, digits) -> None:
    out = merge(runs, method="uniform-soup", out=tmp_path / "soup", progress=False)
    found, parts = state(out), [state(r) for r in runs]
    for name, value in found.items():
        every = torch.stack([p[name] for p in parts])
        wanted = every.double().mean(0) if value.is_floating_point() else every.max(0).values
        assert torch.equal(value, wanted.to(value.dtype)), name
    model = load_trained(out)
    assert model.backbone.name == "resnet_tiny" and model.meta["objective"]["name"] == "uniform_soup"
    assert model.meta["source"] == "digits:train" and len(model.meta["merged"]) == 3
    assert extract(model.backbone, digits.subset(range(9)), model.spec).shape == (9, model.backbone.dim)
    config = (out / "config.yaml").read_text()
    assert "uniform_soup" in config and str(runs[0]) in config
    assert any("batch norm" in n for n in json.loads((out / "merging.json").read_text())["notes"])
    assert osteon.merge is merge


def test_scores_and_gain_over_both_parents(runs: list[Path], tmp_path: Path) -> None:
    out = merge(runs[:2], method="slerp", val="digits:test", out=tmp_path / "s", progress=False)
    scores = json.loads((out / "merging.json").read_text())["scores"]
    assert list(scores) == ["1: r0", "2: r1", "merged"]
    best = max(scores["1: r0"]["mean"], scores["2: r1"]["mean"])
    both = (scores["1: r0"]["mean"] + scores["2: r1"]["mean"]) / 2
    assert scores["merged"]["over_best"] == pytest.approx(scores["merged"]["mean"] - best)
    assert scores["merged"]["over_mean"] == pytest.approx(scores["merged"]["mean"] - both)
    assert all(0.2 < s["low"] <= s["mean"] <= s["high"] <= 1 for s in scores.values())
    text = summary(out)
    assert "gain on --val" in text and "spherical path" in text
    twin = merge([runs[0], runs[0]], method="slerp", val="digits:test", out=tmp_path / "t", progress=False)
    same = json.loads((twin / "merging.json").read_text())["scores"]["merged"]
    assert same["over_best"] == same["over_mean"] == 0  # no gain from identical parents


@pytest.mark.parametrize(("method", "more"), [
    ("greedy_soup", {}), ("task_arithmetic", {"settings": {"scale": 0.4}}), ("ties", {}),
    ("atlas", {"train": "digits:test", "settings": {"epochs": 1}})])
def test_every_method_leaves_a_run(method: str, more: dict, runs: list[Path], start: Path, tmp_path: Path) -> None:
    out = merge(runs, method=method, base=start, val="digits:test", out=tmp_path / method, progress=False, **more)
    assert load_trained(out).meta["objective"]["name"] == method
    assert all(torch.isfinite(v.float()).all() for v in state(out).values())
    if method == "task_arithmetic":
        base, parts = state(start), [state(r) for r in runs]
        wanted = base["conv1.weight"] + 0.4 * sum(p["conv1.weight"] - base["conv1.weight"] for p in parts)
        assert torch.allclose(state(out)["conv1.weight"], wanted, atol=1e-6)


def test_statistics_are_measured_on_data(runs: list[Path], tmp_path: Path) -> None:
    plain = state(merge(runs, method="uniform_soup", out=tmp_path / "a", progress=False))
    out = merge(runs, method="uniform_soup", data="digits:train", out=tmp_path / "b", progress=False)
    found = state(out)
    changed = {k for k in found if not torch.equal(found[k], plain[k])}
    assert changed == {k for k in found if "running" in k}
    from osteon.data import open_source
    from osteon.verbs._model import fit_samples

    model = load_trained(out)
    seen: list[torch.Tensor] = []
    model.backbone.bn1.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.inference_mode():
        model.backbone(fit_samples(open_source("digits:train"), model.spec, np.arange(1258)))
    # 4 batches of 315 and 314 samples: means of means
    assert torch.allclose(found["bn1.running_mean"], seen[0].mean((0, 2, 3)), atol=2e-3)
    assert torch.allclose(found["bn1.running_var"], seen[0].var((0, 2, 3)), rtol=0.05)


def test_classifiers_are_merged_with_their_heads(classifiers: list[Path], tmp_path: Path, digits) -> None:
    out = merge(classifiers, method="uniform_soup", val="digits:test", out=tmp_path / "soup", progress=False)
    found = json.loads((out / "merging.json").read_text())
    assert any("its bias was written into the weights" in n for n in found["notes"])
    model = load_trained(out)
    assert model.adapter is not None and model.meta["class_names"] == [str(i) for i in range(10)]
    heads = [load_trained(c).adapter.head.weight for c in classifiers]
    assert torch.allclose(model.adapter.head.weight, torch.stack(list(heads)).mean(0), atol=1e-6)
    convs = [load_trained(c).backbone.conv1.weight for c in classifiers]
    assert torch.allclose(model.backbone.conv1.weight, torch.stack(list(convs)).mean(0), atol=1e-6)
    alone = merge(classifiers[:1] * 2, method="uniform_soup", out=tmp_path / "one", progress=False)
    before, after = (read_tensors(p / "delta.safetensors")[0] for p in (classifiers[0], alone))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_classifiers_know_their_base(classifiers: list[Path], start: Path, runs: list[Path], tmp_path: Path) -> None:
    given = {"method": "task_arithmetic", "settings": {"scale": 1.0}, "progress": False}
    out = merge(classifiers[:1], out=tmp_path / "a", **given)  # one model at scale 1 is itself
    before, after = (read_tensors(p / "delta.safetensors")[0] for p in (classifiers[0], out))
    assert all(torch.allclose(before[k].float(), after[k].float(), atol=1e-6) for k in before)
    merge(classifiers[:1], base=start, out=tmp_path / "b", **given)
    with pytest.raises(UsageError, match="not adapted from r0: its fingerprint differs"):
        merge(classifiers[:1], base=runs[0], out=tmp_path / "c", **given)
    merge(classifiers[:2], method="atlas", train="digits:test", settings={"epochs": 1}, out=tmp_path / "d",
          progress=False)


def test_other_label_orders_are_refused(classifiers: list[Path], tmp_path: Path) -> None:
    tensors, meta = read_tensors(classifiers[1] / "delta.safetensors")
    swapped = [*meta["class_names"]]
    swapped[3], swapped[4] = swapped[4], swapped[3]
    write_tensors(tmp_path / "odd" / "delta.safetensors", tensors, {**meta, "class_names": swapped})
    with pytest.raises(UsageError, match=r"row 3 of 'head.bias' is '3' in c0 and '4' in odd"):
        merge([classifiers[0], tmp_path / "odd"], method="uniform_soup", out=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_is_said_before_and_nothing_is_written(runs: list[Path], start: Path, tmp_path: Path,
                                                                 classifiers: list[Path]) -> None:
    other = pretrain("digits:train", out=tmp_path / "vit", **{**QUICK, "backbone": "vit_tiny"})
    wide = pretrain("digits:train", out=tmp_path / "wide", **{**QUICK, "backbone": "resnet_mini"})
    tensors, meta = read_tensors(runs[0] / "model.safetensors")
    write_tensors(tmp_path / "dark" / "model.safetensors", tensors, {**meta, "data": {**meta["data"], "mean": [0.1]}})
    damaged = tmp_path / "damaged" / "model.safetensors"
    write_tensors(damaged, tensors, meta)
    raw = bytearray(damaged.read_bytes())
    raw[-5] ^= 255
    damaged.write_bytes(raw)
    a, b, c = runs
    for given, what in (
            (([a, other], "uniform_soup", {}), "tensor '.*' is in"),
            (([a, wide], "uniform_soup", {}), r"'bn1.bias' has shape \(16,\) in r0 and \(32,\) in wide"),
            (([a, tmp_path / "dark"], "uniform_soup", {}), "normalise their input differently"),
            (([a, damaged.parent], "uniform_soup", {}), "checksum does not match"),
            (([a, classifiers[0]], "uniform_soup", {}), "r0 is a backbone and c0 a classifier"),
            (([a, tmp_path / "none"], "uniform_soup", {}), "no finished model"),
            (([a], "uniform_soup", {}), "takes at least 2 runs; 1 given"), (([a, b, c], "slerp", {}), "exactly 2 runs"),
            (([a, b], "ties", {}), "needs the run they were fine-tuned from"),
            (([a, b], "greedy_soup", {}), "needs held-out labelled samples"),
            (([a, b], "atlas", {"base": start}), "needs a few labelled samples"),
            (([a, b], "ties", {"base": start, "train": "digits"}), "learns nothing from samples"),
            (([a, b], "ties", {"base": other}), "is in"), (([a, b], "tie", {}), "Did you mean 'ties'"),
            (([a, b], "ties", {"base": start, "settings": {"keeps": 1}}), "Unknown setting 'keeps'")):
        with pytest.raises((UsageError, DataError), match=what):
            merge(given[0], method=given[1], out=tmp_path / "x", progress=False, **given[2])
        assert not (tmp_path / "x").exists(), what
    with pytest.raises(UsageError, match="overwrite one of its members"):
        merge([a, b], method="uniform_soup", out=a, progress=False)


def test_the_same_call_again_and_another_one(runs: list[Path], tmp_path: Path) -> None:
    from osteon.core.errors import InUseError

    out = merge(runs, method="uniform_soup", out=tmp_path / "m", progress=False)
    before = (out / "model.safetensors").read_bytes()
    assert merge(runs, method="uniform_soup", out=tmp_path / "m", progress=False) == out
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(InUseError, match="other settings"):
        merge(runs[:2], method="uniform_soup", out=tmp_path / "m", progress=False)
    assert (out / "model.safetensors").read_bytes() == before


def test_the_command(runs: list[Path], tmp_path: Path, capsys) -> None:
    from osteon import cli

    for words in ([], ["--json"]):
        with pytest.raises(SystemExit) as leaving:
            cli.main(["merge", *map(str, runs[:2]), "--method", "slerp", "--set", "t=0.25", "--val", "digits:test",
                      "--out", str(tmp_path / "m"), "-q", *words])
        printed = capsys.readouterr().out
        assert leaving.value.code == 0
    assert json.loads(printed)["method"] == "slerp"


def test_members_under_different_licences_are_named(runs: list[Path], tmp_path: Path) -> None:
    import shutil

    from osteon.core.licences import standing

    for run, licence in zip(runs, ("mit", "cc-by-nc-4.0"), strict=False):
        shutil.copytree(run, tmp_path / run.name)
        kept = json.loads((run / "provenance.json").read_text())
        kept["initial_weights"] = [{"name": "timm:x", "license": licence}]
        kept["data"]["license"] = "cc0-1.0"
        (tmp_path / run.name / "provenance.json").write_text(json.dumps(kept))
    out = merge([tmp_path / "r0", tmp_path / "r1"], method="uniform_soup", out=tmp_path / "soup", progress=False)
    notes = [n for n in json.loads((out / "merging.json").read_text())["notes"] if n.startswith("LICENCES")]
    assert notes == ["LICENCES: the licences of the weights differ (r0: mit, r1: cc-by-nc-4.0); whoever uses the "
                     "result must keep to each of them"]
    assert standing(out).license == "cc-by-nc-4.0 and mit" and standing(out).data_license == "cc0-1.0"
    card = (osteon.export(out, out=tmp_path / "hub", format="hub-folder") / "README.md").read_text()
    assert "license: other\nlicense_name: cc-by-nc-4.0-and-mit" in card and "- LICENCES: the licences" in card
