from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from osteon import cli
from osteon.core.errors import DataError, InUseError, UsageError
from osteon.core.run import RunFolder
from osteon.verbs._model import load_trained
from osteon.verbs.pretrain import lasting, pretrain

QUICK: dict[str, Any] = {"objective": "simclr", "backbone": "resnet_tiny", "steps": 4, "batch_size": 16,
                         "progress": False, "report": False}


def command(*words: str) -> subprocess.Popen[str]:
    """``osteon`` in its own process, with as many threads as this one: sums round alike."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, "-m", "osteon", *words], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return int(left.value.code or 0)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return RunFolder(run).load_model()[0]


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_kill_nine_in_mid_run_and_resume_end_with_the_same_bits(tmp_path):
    words = ("pretrain", "digits:train", "--objective", "byol", "--backbone", "resnet_tiny", "--steps", "40",
             "--batch-size", "16", "--set", "checkpoint_every=7", "--set", "precision=32", "--quiet")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = command(*words, "--out", str(cut))
    wait_for((cut / "checkpoints" / "step_00000014.safetensors").exists, process)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and not (cut / "model.safetensors").exists()
    with pytest.raises(DataError, match="not finished"):
        load_trained(cut)
    with pytest.raises(DataError, match="not finished"):
        pretrain("digits:train", out=tmp_path / "next", init=cut, **QUICK)
    asked = {**QUICK, "objective": "byol", "steps": 40, "settings": {"checkpoint_every": 7, "precision": "32"}}
    pretrain("digits:train", out=cut, **asked)
    pretrain("digits:train", out=whole, **asked)
    assert same(cut, whole)
    rows = [[(r["step"], r["loss"]) for r in RunFolder(f).metrics()] for f in (cut, whole)]
    assert rows[0] == rows[1]


def test_sigterm_saves_and_leaves_with_143(tmp_path):
    out = tmp_path / "run"
    process = command("pretrain", "digits:train", "--backbone", "resnet_tiny", "--steps", "100000", "--batch-size",
                      "16", "--set", "checkpoint_every=100000", "--quiet", "--out", str(out))
    wait_for(lambda: len(RunFolder(out).metrics()) > 1, process)
    with pytest.raises(InUseError, match=str(process.pid)):
        pretrain("digits:train", out=out, **{**QUICK, "steps": 100_000, "settings": {"checkpoint_every": 100_000}})
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "a checkpoint was saved" in errors and "same command again" in errors
    found = RunFolder(out).latest_checkpoint()
    assert found is not None and found[0] >= 1
    with RunFolder(out).lock():
        pass  # free again


def test_resuming_with_changed_settings_is_refused_naming_them(tmp_path, capsys):
    out = pretrain("digits:train", out=tmp_path / "run", **QUICK)
    before = (out / "config.yaml").read_bytes(), (out / "model.safetensors").read_bytes()
    with pytest.raises(InUseError) as refused:
        pretrain("digits:train", out=out, **{**QUICK, "steps": 5, "seed": 1, "settings": {"temperature": 0.3}})
    text = str(refused.value)
    assert "train.steps: 4 -> 5" in text and "train.seed: 0 -> 1" in text and "temperature" in text
    assert "batch_size" not in text and refused.value.code == 3
    with pytest.raises(InUseError, match="fingerprint"):
        pretrain("digits:test", out=out, **QUICK)
    assert exit_code("pretrain", "digits:train", "--out", str(out), "--backbone", "resnet_tiny", "--steps", "5",
                     "--batch-size", "16") == 3
    assert "train.steps: 4 -> 5" in capsys.readouterr().err
    assert before == ((out / "config.yaml").read_bytes(), (out / "model.safetensors").read_bytes())


def test_a_finished_run_is_repeated_for_nothing(tmp_path):
    out = pretrain("digits:train", out=tmp_path / "run", **QUICK)
    before = weights(out)
    assert pretrain("digits:train", out=out, **QUICK) == out
    assert all(torch.equal(before[k], v) for k, v in weights(out).items())
    assert [r["step"] for r in RunFolder(out).metrics()] == [1, 4]


def test_planted_collapse_leaves_with_exit_code_4(tmp_path, capsys):
    np.savez(tmp_path / "black.npz", image=np.zeros((32, 8, 8), np.uint8))  # whatever the views, all alike
    code = exit_code("pretrain", str(tmp_path / "black.npz"), "--objective", "simsiam", "--backbone", "resnet_tiny",
                     "--steps", "200", "--batch-size", "8", "--out", str(tmp_path / "run"), "--quiet")
    assert code == 4 and "collapsed" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert RunFolder(tmp_path / "run").metrics()[-1]["step"] <= 200


# -- settings --------------------------------------------------------------------------------------------------------


def test_a_config_repeats_the_run_bit_for_bit(tmp_path, digits):
    """BYOL and SGD both have a momentum: each must get its own back."""
    first = pretrain("digits:train", out=tmp_path / "a", **{
        **QUICK, "objective": "byol", "settings": {"limit": 100, "momentum": 0.5, "train.momentum": 0.8,
                                                   "optimizer": "sgd", "flip": False, "backbone.stride": 2}})
    stored = yaml.safe_load((first / "config.yaml").read_text())
    options = stored["objective_options"]
    assert options["momentum"] == 0.5 and options["flip"] is False and stored["train"]["momentum"] == 0.8
    assert options["out"] == 256  # what was not asked for is stored as well
    assert stored["backbone_options"]["stride"] == 2 and stored["data"]["limit"] == 100
    again = pretrain("digits:train", out=tmp_path / "b", config=first / "config.yaml", progress=False, report=False)
    assert (again / "config.yaml").read_bytes() == (first / "config.yaml").read_bytes() and same(first, again)
    assert pretrain("digits:train", out=first, config=first / "config.yaml", progress=False, report=False) == first
    other = pretrain("digits:train", out=tmp_path / "c", config=first / "config.yaml", progress=False, report=False,
                     steps=2, settings={"limit": 50, "momentum": 0.6})
    changed = yaml.safe_load((other / "config.yaml").read_text())
    assert changed["train"] == {**stored["train"], "steps": 2}
    assert changed["data"]["limit"] == 50 and changed["objective_options"] == {**options, "momentum": 0.6}
    simclr = pretrain("digits:train", out=tmp_path / "e", config=first / "config.yaml", objective="simclr", steps=1,
                      progress=False, report=False)  # named explicitly, it stands above the configuration's
    asked = yaml.safe_load((simclr / "config.yaml").read_text())
    assert asked["objective"] == "simclr" and asked["objective_options"]["flip"] is None
    epochs = pretrain("digits:train", out=tmp_path / "d", config=first / "config.yaml", progress=False, report=False,
                      epochs=1)
    assert yaml.safe_load((epochs / "config.yaml").read_text())["train"]["steps"] == 100 // 16


@pytest.mark.parametrize(("text", "named"), [("objectiv: simclr", "objectiv"), ("- 1", "mapping"), ("a: [", "read"),
                                             ("train: {warmp: 1}", "warmp.*Did you mean 'warmup'")])
def test_a_wrong_config_is_refused(tmp_path, text, named):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=named):
        pretrain("digits:train", out=tmp_path / "run", config=tmp_path / "c.yaml", progress=False)
    with pytest.raises(UsageError, match="cannot be read"):
        pretrain("digits:train", out=tmp_path / "run", config=tmp_path / "none.yaml", progress=False)


@pytest.mark.parametrize(("settings", "named"), [
    ({"temprature": 0.1}, "'temprature'.*'temperature'"), ({"weight_deca": 0.1}, "'weight_decay'"),
    ({"max_skiped": 0.1}, "'max_skipped'"), ({"backbone.strid": 2}, "'stride'"), ({"train.lrr": 1}, "'lrr'.*'lr'"),
    ({"optim.lr": 1}, "optim.lr"), ({"temperature": "hot"}, "temperature"), ({"lr": "fast"}, "lr"),
    ({"log_every": 0}, "log_every"), ({"seed": "x"}, "seed"), ({"steps": 2.5}, "steps")])
def test_an_unknown_or_impossible_setting_is_refused_with_the_nearest(tmp_path, settings, named):
    asked = {k: v for k, v in QUICK.items() if k not in settings}
    with pytest.raises(UsageError, match=named):
        pretrain("digits:train", out=tmp_path / "run", settings=settings, **asked)
    assert not (tmp_path / "run").exists()


def test_arguments_may_also_be_set(tmp_path):
    asked = {k: v for k, v in QUICK.items() if k not in ("steps", "batch_size")}
    out = pretrain("digits:train", out=tmp_path / "run", **asked,
                   settings={"steps": 2, "batch_size": 8, "seed": 3, "limit": 40, "precision": "32"})
    train = yaml.safe_load((out / "config.yaml").read_text())["train"]
    assert (train["steps"], train["batch_size"], train["seed"], train["precision"]) == (2, 8, 3, "32")


def test_the_seed_decides_and_a_run_repeats(tmp_path):
    a, b, c = (pretrain("digits:train", out=tmp_path / n, seed=s, **QUICK) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b) and not same(a, c)


# -- initial weights -------------------------------------------------------------------------------------------------


def test_init_from_a_run_keeps_its_statistics_and_starts_from_its_weights(tmp_path, trained, archive):
    other = archive("dark.npz", 0, 64, change=lambda x: x // 4)
    out = pretrain(other, out=tmp_path / "run", init=trained, **{**QUICK, "backbone": "auto",
                                                                 "settings": {"lr": 0.0, "precision": "32"}})
    before, after = load_trained(trained), load_trained(out)
    assert (after.spec.mean, after.spec.std) == (before.spec.mean, before.spec.std)
    ours, theirs = dict(after.backbone.named_parameters()), dict(before.backbone.named_parameters())
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)  # nothing was learned at a rate of 0
    assert RunFolder(out).config()["init"] == str(trained)
    alone = pretrain(other, out=tmp_path / "alone", **QUICK)
    assert load_trained(alone).spec.mean != before.spec.mean
    moved = pretrain(other, out=tmp_path / "moved", init=trained, **QUICK)
    assert not same(moved, trained)


def test_an_init_that_does_not_fit_is_refused_in_words(tmp_path, trained, archive):
    colour = archive("rgb.npz", 0, 32, change=lambda x: np.repeat(x, 3, axis=3))
    quick = {**QUICK, "backbone": "auto"}
    with pytest.raises(UsageError, match="1 channels, this source has 3"):
        pretrain(colour, out=tmp_path / "run", init=trained, **quick)
    with pytest.raises(UsageError, match="token backbones"):
        pretrain("digits:train", out=tmp_path / "run", init=trained, **{**quick, "objective": "mae"})
    with pytest.raises(UsageError, match="resnet_tiny; resnet18 is another"):
        pretrain("digits:train", out=tmp_path / "run", init=trained, **{**quick, "backbone": "resnet18"})
    with pytest.raises(UsageError, match="stride cannot be changed"):
        pretrain("digits:train", out=tmp_path / "run", init=trained, settings={"backbone.stride": 1}, **quick)
    with pytest.raises(UsageError, match="token backbones"):
        pretrain("digits:train", out=tmp_path / "run", **{**QUICK, "objective": "mae"})
    assert not (tmp_path / "run").exists()


def test_init_from_a_single_file(tmp_path, trained):
    still = {**QUICK, "backbone": "auto", "settings": {"lr": 0.0, "precision": "32"}}
    before = load_trained(trained).backbone
    plain = tmp_path / "plain.pt"
    torch.save({"state_dict": {f"module.backbone.{k}": v for k, v in before.state_dict().items()}
                | {"module.head.weight": torch.zeros(3)}}, plain)
    checkpoint = next((trained / "checkpoints").glob("step_*.safetensors"))
    named = {"backbone": before.name}
    for name, (file, options) in {"model": (trained / "model.safetensors", {}), "checkpoint": (checkpoint, {}),
                                  "foreign": (plain, named)}.items():
        out = pretrain("digits:train", out=tmp_path / name, init=file, **{**still, **options})
        after = dict(load_trained(out).backbone.named_parameters())
        assert all(torch.equal(after[k], v) for k, v in before.named_parameters()), name


def test_a_file_of_weights_that_does_not_fit_is_refused_naming_the_tensor(tmp_path, trained):
    quick = {**QUICK, "backbone": "auto"}
    state = load_trained(trained).backbone.state_dict()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="which architecture"):
        pretrain("digits:train", out=tmp_path / "run", init=tmp_path / "w.pt", **quick)
    torch.save({**state, "conv1.weight": torch.zeros(2, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"conv1.weight.*\(2, 1, 3, 3\)"):
        pretrain("digits:train", out=tmp_path / "run", init=tmp_path / "w.pt", **QUICK)
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="no weights for 'conv1.weight'"):
        pretrain("digits:train", out=tmp_path / "run", init=tmp_path / "w.pt", **QUICK)
    with open(tmp_path / "w.pt", "wb") as handle:
        pickle.dump({"state_dict": Path}, handle)
    with pytest.raises(DataError, match="never runs"):
        pretrain("digits:train", out=tmp_path / "run", init=tmp_path / "w.pt", **QUICK)
    assert not (tmp_path / "run").exists()


def test_init_from_a_timm_name(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    asked: list[bool] = []

    def without_download(name: str, pretrained: bool = False, **options: Any) -> Any:
        """What timm's own cache would give: weights all 0.5."""
        asked.append(pretrained)
        model = create(name, pretrained=False, **options)
        if pretrained:
            for parameter in model.parameters():
                parameter.data.fill_(0.5)
        return model

    monkeypatch.setattr(timm, "create_model", without_download)
    out = pretrain("digits:train", out=tmp_path / "run", init="timm:vit_tiny_patch16_224", **{
        **QUICK, "backbone": "auto", "steps": 1, "settings": {"lr": 0.0, "limit": 32, "backbone.patch_size": 4,
                                                              "backbone.depth": 1, "backbone.embed_dim": 24}})
    assert asked == [True]
    trained = load_trained(out)  # and nothing is asked of timm's source again
    assert asked == [True, False] and trained.backbone.name == "timm:vit_tiny_patch16_224"
    assert all(bool((p == 0.5).all()) for p in trained.backbone.parameters())


def test_init_from_a_local_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=8, patch_size=4, num_channels=1)
    torch.manual_seed(5)
    model = transformers.ViTModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "vit")
    assert (tmp_path / "vit" / "model.safetensors").exists()  # as a run has one
    quick = {**QUICK, "backbone": "auto", "steps": 1, "settings": {"lr": 0.0, "limit": 32}}
    for name, init in (("a", str(tmp_path / "vit")), ("b", f"hf:{tmp_path / 'vit'}")):
        trained = load_trained(pretrain("digits:train", out=tmp_path / name, init=init, **quick))
        ours = dict(trained.backbone.named_parameters())
        assert all(torch.equal(ours[f"model.{k}"], v) for k, v in model.named_parameters())
    with pytest.raises(UsageError, match="1 channels, the data have 3"):
        np.savez(tmp_path / "rgb.npz", image=np.zeros((8, 8, 8, 3), np.uint8))
        pretrain(tmp_path / "rgb.npz", out=tmp_path / "c", init=tmp_path / "vit", **{**QUICK, "backbone": "auto",
                                                                                   "batch_size": 4})
    with pytest.raises(UsageError):
        pretrain("digits:train", out=tmp_path / "c", init=tmp_path / "nowhere", **quick)


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "named"), [(1, "at least 2 samples"), (3, None), (2, None)])
def test_very_few_images_work_or_are_refused_in_words(tmp_path, archive, images, named):
    source = archive("few.npz", 0, images)
    asked = {**QUICK, "batch_size": None, "steps": 2, "report": True}
    if named:
        with pytest.raises(UsageError, match=named):
            pretrain(source, out=tmp_path / "run", **asked)
        assert not (tmp_path / "run").exists()
    else:
        out = pretrain(source, out=tmp_path / "run", **asked)
        assert (out / "report.html").stat().st_size > 1000


def test_an_objective_that_needs_labels_says_so(tmp_path, archive):
    source = archive("bare.npz", 0, 16, labels=False)
    with pytest.raises(UsageError, match="learns from labels"):
        pretrain(source, out=tmp_path / "run", **{**QUICK, "objective": "supervised"})


def test_a_run_folder_holds_what_is_promised(trained):
    assert {"config.yaml", "provenance.json", "model.safetensors", "checkpoints", "metrics.jsonl", "skipped.csv",
            "report.html"} <= {p.name for p in trained.iterdir()}
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    assert stored["objective"] == "simclr" and stored["backbone"] == "resnet_tiny" and stored["train"]["steps"] == 4


def test_a_source_is_stored_by_a_name_that_holds_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lasting("photos") == str(tmp_path / "photos") and lasting("photos:train") == f"{tmp_path / 'photos'}:train"
    assert lasting("digits:train") == "digits:train" and lasting("hf:mnist") == "hf:mnist"
