"""``--head-layer``: adapting and scoring from inside a run's projection head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import osteon
from osteon.core.errors import UsageError
from osteon.verbs._model import behind_head, extract, load_head, load_trained
from osteon.verbs.adapt import adapt

QUICK = {"train": "digits:train", "val": "digits:test", "steps": 2, "batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose head has three layers, of 16 -> 128 -> 128 -> 9 features."""
    return osteon.pretrain("digits:train", objective="simclr", backbone="vit_tiny", steps=2, batch_size=16,
                           out=tmp_path_factory.mktemp("runs") / "base", progress=False, report=False, settings={
                               "limit": 200, "out": 9, "backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 2})


def test_fine_tuning_starts_inside_the_head_and_reloads_with_it(run, tmp_path):
    trained = load_trained(run)
    head, val = load_head(run, trained).projector, osteon.data.open_source("digits:test", like=trained.spec)
    with torch.no_grad():
        plain = torch.from_numpy(extract(trained.backbone, val, trained.spec))
        wanted = head[:3].eval()(plain).numpy()
    probe = adapt(run, adapter="linear", head_layer=1, out=tmp_path / "linear", **QUICK)
    found = osteon.load(probe)
    assert found.adapter.head.in_features == found.backbone.dim == 128
    assert np.allclose(extract(found.backbone, val, trained.spec), wanted, atol=1e-5), "a probe trains no layer"
    full = osteon.load(adapt(run, adapter="full", head_layer=1, out=tmp_path / "full", **QUICK))
    assert not torch.equal(full.backbone.head_layers[0].weight, head[0].weight), "the head's layer trains too"
    assert not torch.equal(full.backbone.blocks[0].attn.qkv.weight, trained.backbone.blocks[0].attn.qkv.weight)
    exported = osteon.load(osteon.export(tmp_path / "full", out=tmp_path / "exported", format="torch.export"))
    assert np.allclose(extract(exported.backbone, val, trained.spec), extract(full.backbone, val, trained.spec))
    assert load_trained(run).backbone.dim == 16, "the run itself is left alone"


def test_scores_are_those_of_the_layer_and_a_head_that_is_not_there_is_refused(run, tmp_path):
    call = {"train": "digits:train", "test": "digits:test", "metrics": ("ncm", "fine_tune"), "seeds": 1,
            "scratch_steps": 1, "label_budget": (40,), "leaks": "allow", "progress": False}
    found = osteon.evaluate(run, head_layer=1, out=tmp_path / "one", **call)
    assert any("behind layer 1 of the projection head" in note for note in found["notes"])
    arms = {a["name"]: a["mean"] for a in found["arms"]}
    assert "simclr + fine-tuned" in arms
    model = load_trained(run)
    behind_head(run, model, 1)
    assert model.backbone.dim == 128
    for error, options in (("no layer 4", {"head_layer": 4}), ("does not read its head", {
            "head_layer": 1, "adapter": "vqt"}), ("counted from 1", {"head_layer": -1})):
        with pytest.raises(UsageError, match=error):
            adapt(run, out=tmp_path / "no", **{"adapter": "linear", **options}, **QUICK)
    (run / "head.safetensors").rename(run / "gone")
    with pytest.raises(UsageError, match="keeps no projection head"):
        adapt(run, adapter="linear", head_layer=1, out=tmp_path / "no", **QUICK)
    (run / "gone").rename(run / "head.safetensors")
    assert not (tmp_path / "no").exists()
