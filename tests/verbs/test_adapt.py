from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import osteon
from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import DataError, InUseError, UsageError
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors
from osteon.parts.adapter import BASE, fingerprint
from osteon.parts.objective import Objective
from osteon.parts.types import DataSpec, Draws, Loss, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._adapt_cost import SavedBytes, StepCost, measure, saved_bytes, table
from osteon.verbs._adapt_objective import AdaptObjective
from osteon.verbs._model import extract, fit_samples, load_trained
from osteon.verbs.adapt import adapt, predict, sort_settings, summary

QUICK: dict[str, Any] = {"train": "digits:train", "val": "digits:test", "steps": 4, "batch_size": 16, "seed": 3,
                         "progress": False}
ADAPTERS = [card.name for card in registry.cards(kind="adapter")]


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Path:
    """A run whose backbone is a small ViT."""
    return osteon.pretrain("digits:train", objective="simclr", backbone="vit_tiny", steps=3, batch_size=16,
                           out=tmp_path_factory.mktemp("runs") / "vit", progress=False, report=False,
                           settings={"backbone.depth": 2, "backbone.dim": 32, "backbone.heads": 2})


@pytest.fixture(scope="session")
def probe(tokens, tmp_path_factory) -> Path:
    """An adapted run."""
    return adapt(tokens, adapter="svfit", out=tmp_path_factory.mktemp("runs") / "svfit", **QUICK)


def test_what_a_run_leaves(probe, tokens, digits):
    names = {p.name for p in probe.iterdir()}
    assert {"config.yaml", "provenance.json", "delta.safetensors", "adaptation.json", "metrics.jsonl",
            "skipped.csv", "report.html"} <= names and "model.safetensors" not in names and "peft" not in names
    found = json.loads((probe / "adaptation.json").read_text())
    assert found["labels"] == len(osteon.data.open_source("digits:train")) and found["adapter"] == "svfit"
    delta, meta = read_tensors(probe / "delta.safetensors")
    base = load_trained(tokens)
    assert bytes(delta[BASE].tolist()).hex() == fingerprint(base.backbone) == meta["base"]["fingerprint"]
    assert meta["base"]["run"] == str(tokens.resolve()) and meta["class_names"] == [str(i) for i in range(10)]
    trained = osteon.load(probe)
    assert trained.adapter is not None and trained.name == "svfit" and trained.spec.mean == base.spec.mean
    assert found["costs"]["svfit"]["trainable"] == trained.adapter.expected_trainable()
    assert found["costs"]["full"]["trainable"] == sum(p.numel() for p in base.backbone.parameters()) + 330


def test_the_score_is_that_of_the_stored_network_on_the_validation_samples(probe):
    trained = osteon.load(probe)
    val = osteon.data.open_source("digits:test", like=trained.spec)
    x = fit_samples(val, trained.spec, np.arange(len(val)))
    with torch.no_grad():
        right = (trained.adapter(x).argmax(1).numpy() == val.labels).mean()
        merged = trained.adapter.head(trained.backbone(x).pooled)
        torch.testing.assert_close(merged, trained.adapter(x), atol=1e-5, rtol=1e-4)
    scores = predict(trained.adapter, val, trained.spec)
    assert scores.shape == (len(val), 10) and scores.sum(1) == pytest.approx(1.0, abs=1e-5)
    found = json.loads((probe / "adaptation.json").read_text())["scores"]
    interval = found["intervals"]["accuracy"]
    assert interval["value"] == pytest.approx(right) and interval["low"] <= right <= interval["high"]


CHILD = """
import sys
import numpy as np, osteon
from osteon.verbs._model import extract
from osteon.data import open_source
for run, features in zip(sys.argv[1::2], sys.argv[2::2]):
    trained = osteon.load(run)
    got = extract(trained.backbone, open_source("digits:test", like=trained.spec), trained.spec)
    assert abs(got - np.load(features, allow_pickle=False)).max() < 1e-5, run
"""


def test_adapted_runs_are_read_in_a_fresh_process_by_embed_evaluate_and_export(tokens, probe, trained, tmp_path):
    runs = {"svfit": probe, "lora": adapt(trained, adapter="lora", out=tmp_path / "lora", **QUICK),
            "vqt": adapt(tokens, adapter="vqt", out=tmp_path / "vqt", **QUICK)}
    words = []
    for name, run in runs.items():
        folder = osteon.embed(run, "digits:test", out=tmp_path / f"features_{name}")
        words += [str(run), str(folder / "features.npy")]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    widths = [np.load(f, allow_pickle=False).shape[1] for f in words[1::2]]
    assert widths == [32, 64, 32 + 2 * 32]
    assert (runs["lora"] / "peft" / "adapter_model.safetensors").exists()
    result = osteon.evaluate(runs["vqt"], train="digits:train", test="digits:test", metrics=("ncm",), seeds=1,
                             scratch_steps=0, progress=False)
    assert any(a["source"] == "vqt" for a in result["arms"]) and any("untrained" in a["name"] for a in result["arms"])
    osteon.export(probe, out=tmp_path / "exported")
    again = osteon.load(tmp_path / "exported")
    assert again.adapter is None
    val = osteon.data.open_source("digits:test", like=again.spec)
    got = extract(again.backbone, val, again.spec)
    assert abs(got - np.load(words[1], allow_pickle=False)).max() < 1e-5
    with pytest.raises(UsageError, match="works beside the backbone's weights"):
        osteon.export(runs["vqt"], out=tmp_path / "no")
    with pytest.raises(UsageError, match="no network to adapt further"):
        adapt(runs["vqt"], adapter="linear", out=tmp_path / "further", **QUICK)
    further = adapt(runs["svfit"], adapter="linear", out=tmp_path / "further", **QUICK)
    assert osteon.load(further).backbone.dim == 32


def test_a_stopped_run_goes_on_to_the_same_weights_and_another_setting_is_refused(tokens, tmp_path):
    whole = adapt(tokens, adapter="vectorfit", out=tmp_path / "whole", settings={"checkpoint_every": 2}, **QUICK)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "delta.safetensors").unlink()
    (part / "checkpoints" / "step_00000004.safetensors").unlink()
    again = adapt(tokens, adapter="vectorfit", out=part, settings={"checkpoint_every": 2}, **QUICK)
    one, two = (read_tensors(r / "delta.safetensors")[0] for r in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(InUseError, match="lr: 0.01 -> 0.5"):
        adapt(tokens, adapter="vectorfit", out=part, lr=0.5, settings={"checkpoint_every": 2}, **QUICK)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_goes_through_the_loop_resumes_bit_for_bit_and_repeats(name, tokens, tmp_path):
    if name == "full":
        return
    options = {"settings": {"checkpoint_every": 2}, "label_budget": 64}
    first = adapt(tokens, adapter=name, out=tmp_path / "a", **options, **QUICK)
    (first / "delta.safetensors").rename(tmp_path / "want.safetensors")
    (first / "checkpoints" / "step_00000004.safetensors").unlink()
    again = adapt(tokens, adapter=name, out=tmp_path / "a", **options, **QUICK)
    want, got = read_tensors(tmp_path / "want.safetensors")[0], read_tensors(again / "delta.safetensors")[0]
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)
    osteon.load(again)


@pytest.mark.parametrize("base", ["timm:vit_tiny_patch16_224", "timm:resnet10t", "hf"])
def test_public_models_by_name(base, tmp_path):
    options: dict[str, Any] = {"backbone.pretrained": False}
    if base.startswith("timm:vit"):
        options |= {"backbone.patch_size": 4, "backbone.embed_dim": 32, "backbone.depth": 2, "backbone.num_heads": 2}
    if base == "hf":
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                           image_size=8, patch_size=4, num_channels=1)
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
        base, options = str(tmp_path / "model"), {}
    run = adapt(base, adapter="bias", out=tmp_path / "run", settings=options, label_budget=40, **QUICK)
    trained = osteon.load(run)
    assert trained.adapter is not None and trained.meta["base"]["name"].startswith(("timm:", "hf:"))
    weights = json.loads((run / "provenance.json").read_text())["initial_weights"]
    assert weights == ("random" if options else [{"name": f"hf:{base}", "license": "bsd-3-clause"}])


def test_a_base_that_changed_or_is_gone_is_refused(tokens, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tokens, base)
    run = adapt(base, adapter="linear", out=tmp_path / "run", label_budget=40, **QUICK)
    tensors, meta = RunFolder(base).load_model()
    tensors["norm.bias"] = tensors["norm.bias"] + 1
    RunFolder(base).save_model(tensors, meta)
    with pytest.raises(UsageError, match="another base: the fingerprints differ"):
        osteon.load(run)
    shutil.rmtree(base)
    with pytest.raises(DataError, match="base of this adapted run is not where it was"):
        osteon.load(run)


@pytest.mark.parametrize(("change", "message"), [
    ({"adapter": "lorra"}, "no adapter called 'lorra'. Did you mean 'lora'"),
    ({"settings": {"rnk": 3}}, "Unknown setting 'rnk'. Did you mean 'rank'"),
    ({"settings": {"targets": "nothing"}}, "No layer is called 'nothing'.*Layers there are"),
    ({"settings": {"backbone.depth": 3}}, "backbone of a run cannot be changed"),
    ({"settings": {"size": 16}}, "image size is the run's own"),
    ({"settings": {"flip": "perhaps"}}, "flip must be bool"),
    ({"settings": {"smoothing": 1.0}}, "smoothing lies in"),
    ({"settings": {"crop_min": 2.0}}, "Crops of"),
    ({"label_budget": 10**6}, "label budget"),
    ({"lr": -1.0}, "lr must be"),
])
def test_bad_input_is_an_error_before_anything_is_written(change, message, tokens, tmp_path):
    with pytest.raises(UsageError, match=message):
        adapt(tokens, out=tmp_path / "run", **{"adapter": "svfit", **QUICK, **change})
    assert not (tmp_path / "run").exists()


def test_labels_are_needed_and_classes_must_fit(tokens, archive, tmp_path):
    more = {**QUICK, "out": tmp_path / "run", "adapter": "linear"}
    with pytest.raises(UsageError, match="Adapting needs labels"):
        adapt(tokens, **{**more, "train": archive("a.npz", 0, 40, labels=False)})
    with pytest.raises(UsageError, match="Adapting needs labels"):
        adapt(tokens, **{**more, "val": archive("b.npz", 0, 40, labels=False)})
    few = archive("c.npz", 0, 40, label=np.arange(40) % 3)
    with pytest.raises(DataError, match="does not occur in the training data"):
        adapt(tokens, **{**more, "train": few})
    with pytest.raises(UsageError, match="There is no run at"):
        adapt(tmp_path / "nowhere", **more)
    assert not (tmp_path / "run").exists()


def test_copies_between_training_and_validation_are_said(tokens, archive, tmp_path):
    run = adapt(tokens, **{**QUICK, "train": archive("a.npz", 0, 200), "val": archive("b.npz", 190, 300)},
                out=tmp_path / "run", adapter="linear")
    notes = json.loads((run / "adaptation.json").read_text())["notes"]
    assert "LEAK: 10 validation samples are copies of training samples; the scores flatter" in notes


def test_several_labels_a_sample(tokens, archive, tmp_path):
    rng = np.random.default_rng(0)
    made = [archive(f"{n}.npz", 100 * i, 100 * i + 100, label=(rng.random((100, 3)) < 0.4).astype(np.uint8))
            for i, n in enumerate("ab")]
    run = adapt(tokens, **{**QUICK, "train": made[0], "val": made[1]}, out=tmp_path / "run", adapter="bias",
                settings={"weighting": "auto", "smoothing": 0.1})
    found = json.loads((run / "adaptation.json").read_text())["scores"]
    assert set(found["intervals"]) == {"mean_average_precision"}


def test_settings_find_their_door():
    got = sort_settings({"rank": 2, "flip": False, "limit": 9, "weight_decay": 0.1, "backbone.depth": 2, "epochs": 3,
                         "train.lr": 1.0}, "lora")
    assert got == {"adapter": {"rank": 2}, "views": {"flip": False}, "data": {"limit": 9},
                   "train": {"weight_decay": 0.1, "epochs": 3, "lr": 1.0}, "backbone": {"depth": 2}}
    with pytest.raises(UsageError, match="Unknown setting 'task'"):
        sort_settings({"task": 1}, "lora")


SPEC = DataSpec("image", 1, 8, (0.3,), (0.4,), num_classes=3)


def objective(name: str = "svfit", **options: Any) -> AdaptObjective:
    torch.manual_seed(0)
    base = build_backbone("vit_tiny", channels=1, size=8, dim=32, depth=2, heads=2)
    return AdaptObjective(registry.build("adapter", name, base, SPEC), SPEC, **options)


def batch(count: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator),
            "label": torch.arange(count) % 3, "index": torch.arange(count)}


def test_the_loss_is_cross_entropy_of_the_logits_plus_the_adapters_penalty():
    work = objective("hra", augment="none")
    work.adapter.weight = 0.25  # HRA's weight of its penalty
    data = batch()
    loss = work(data, Step(0, 10))
    x = (data["image"].float() / 255 - 0.3) / 0.4
    want = nn.functional.cross_entropy(work.adapter(x), data["label"])
    torch.testing.assert_close(loss.total, want + work.adapter.penalty())
    torch.testing.assert_close(loss.parts["ce"], want.detach())
    smooth = objective("linear", augment="none", smoothing=0.3)
    assert smooth.targets(torch.tensor([1]))[0].tolist() == pytest.approx([0.1, 0.8, 0.1])


@pytest.mark.parametrize("name", ADAPTERS)
def test_accumulation_gives_the_gradient_of_the_whole_batch(name):
    found = []
    for accumulate in (1, 3):
        work = objective(name, flip=False)
        for attribute in ("dropout",):
            if hasattr(work.adapter, attribute):
                setattr(work.adapter, attribute, 0.0)
        for module in work.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        settings, _ = resolve_settings({"steps": 5, "batch_size": 12, "accumulate": accumulate, "precision": "32"},
                                       work.adapter.recipe, 100, kind="tokens")
        engine = Engine(work.train(), settings, make_fabric("32"))
        engine.gradients(batch(), Step(1, 5))
        found.append({n: p.grad.clone() for n, p in work.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, want in found[0].items():
        torch.testing.assert_close(found[1][key], want, atol=1e-5, rtol=1e-3, msg=key)


class Square(Objective):
    """Keeps exactly one tensor of (B, 10) float32: the product's other factor is a weight."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 10, bias=False), SPEC)  # type: ignore[arg-type]

    def encode(self, batch, draws: Draws):
        out = self.backbone(batch["image"])
        return {"out": out, "features": out.detach()}

    def score(self, encoded, step):
        return Loss(encoded["out"].sum())


def test_bytes_kept_for_the_backward_pass_by_hand():
    work = Square()
    x = torch.randn(6, 10)
    assert saved_bytes(work, {"image": x}, Step(0, 1)) == 6 * 10 * 4  # the input, for the gradient of the weight
    with SavedBytes(work) as kept:
        y = x.requires_grad_().exp()  # keeps its output
        y.view(60).square().sum()  # keeps its input, which is the same memory
    assert kept.total == 240
    settings, _ = resolve_settings({"steps": 5, "batch_size": 6, "precision": "32", "optimizer": "adamw"}, {}, 100,
                                   kind="tokens")
    cost = measure(work, {"image": x.detach()}, settings, make_fabric("32"))
    assert cost.trainable == 100 and cost.optimizer_bytes == 100 * 8 + 4 and cost.step_seconds > 0
    text = table({"a": StepCost(50, 2**20, 512, 0.001), "full": StepCost(100, 2**21, 2048, 0.004)}, "full")
    assert "50 (50 %)" in text and "1 MiB (50 %)" in text and "512 B (25 %)" in text and "1.0 ms (25 %)" in text


def test_the_summary_names_costs_and_scores(probe):
    text = summary(probe)
    assert "svfit" in text and "full" in text and "accuracy:" in text and "539 validation samples" in text


def test_the_command_line(tokens, tmp_path, capsys):
    from osteon import cli

    with pytest.raises(SystemExit) as leaving:
        cli.main(["adapt", str(tokens), "--train", "digits:train", "--val", "digits:test", "--adapter", "linear",
                  "--out", str(tmp_path / "run"), "--steps", "3", "--batch-size", "16", "--label-budget", "50", "--set",
                  "flip=false", "--quiet"])
    out = capsys.readouterr().out
    assert leaving.value.code == 0 and "kept for backward" in out and "accuracy" in out and "Wrote" in out
    assert json.loads((tmp_path / "run" / "adaptation.json").read_text())["labels"] == 50
