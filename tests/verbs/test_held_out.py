"""``--metrics held_out``: the loss of a run's own task, with the weights of its heads, beside controls."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.modalities import find
from osteon.modalities.text import load_tokenizer
from osteon.parts.judged import CHAMFER, NATS
from osteon.parts.types import Draws, Step
from osteon.train.held_out import held_out_loss
from osteon.verbs._held_out import load_objective
from osteon.verbs._model import fit_samples, load_trained
from osteon.verbs.evaluate import evaluate, summary
from osteon.verbs.pretrain import pretrain
from osteon.views import make_views

QUICK = {"backbone": "vit_tiny", "steps": 3, "batch_size": 8, "progress": False, "report": False}
TINY = {"backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 2}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Lines without order, but that a vowel always follows a consonant, and an accent."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("texts")
    for name, count in (("train", 300), ("test", 40)):
        lines = ["".join(rng.choice(list("bdfg")) + rng.choice(list("aeé")) for _ in range(8)) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory) -> Path:
    return pretrain(texts / "train.txt", objective="clm", out=tmp_path_factory.mktemp("runs") / "clm", **QUICK,
                    settings={**TINY, "tokenizer": "char", "documents": "lines"})


def own(run: Path, train: object, test: object, **more: object) -> dict:
    result = evaluate(run, train=train, test=test, metrics="held_out", progress=False, leaks="allow", **more)
    return {**result, **{"arms": {a["name"]: a for a in result["held_out"][run.name]["arms"]}}}


def test_perplexity_and_bits_a_byte_beside_n_grams(run, texts, tmp_path):
    result = own(run, texts / "train.txt:train", texts / "test.txt:train", out=tmp_path)
    arms, told = result["arms"], result["held_out"]["clm"]
    assert list(arms) == [a["name"] for a in sorted(told["arms"], key=lambda a: a["loss"])]
    assert set(arms) == {"clm", "uniform", "unigram", "bigram", "trigram", "untrained network"}
    for a in arms.values():
        assert a["low"] <= a["loss"] <= a["high"] and a["perplexity"] == pytest.approx(math.exp(a["loss"]))
    # 7 letters and <unk>. The law of the texts: of the 15 letters asked for, 8 are one of 3, the others one of 4.
    assert arms["uniform"]["perplexity"] == pytest.approx(8)
    assert arms["bigram"]["loss"] == pytest.approx((8 * math.log(3) + 7 * math.log(4)) / 15, rel=0.03)
    assert arms["unigram"]["loss"] > arms["bigram"]["loss"] + 0.5 and told["unit"] == NATS
    data = open_source(texts / "test.txt:train", like=load_trained(run).spec)
    text = load_tokenizer(data.spec.traits["tokenizer"])
    size = sum(len(text.decode(row[1:]).encode()) for row in data.images[:, 0])
    assert told["asked"] == 15 * len(data) and size > told["asked"]
    assert arms["uniform"]["bits_per_byte"] == pytest.approx(3 * told["asked"] / size)
    loaded = load_objective(run, load_trained(run))
    assert arms["clm"]["loss"] == pytest.approx(held_out_loss(loaded, data)["cross_entropy"], rel=1e-5)
    assert told["verdict"]["answer"] == "does not pay" and "bigram" in result["verdict"]["sentence"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["held_out"]["clm"] == told
    assert "Held-out samples: clm" in (tmp_path / "report.html").read_text()
    table = summary(result | {"arms": []})
    assert "bits a byte" in table and table.endswith(told["verdict"]["sentence"])


def test_the_heads_are_those_of_the_last_checkpoint(run):
    model = load_trained(run)
    trained, other = load_objective(run, model), load_objective(run, model, trained=False)
    state = trained.backbone.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())
    assert not torch.equal(trained.head.weight, other.head.weight)


def test_a_task_beside_scores_on_labels(tmp_path, archive):
    train, test = archive("train.npz", 0, 160), archive("test.npz", 200, 260)
    run = pretrain(train, objective="mae", out=tmp_path / "mae", **QUICK, settings=TINY)
    result = evaluate(run, train=train, test=test, metrics=("ncm", "held_out"), seeds=1, scratch_steps=0,
                      leaks="allow", progress=False)
    told = result["held_out"]["mae"]
    assert {a["name"] for a in told["arms"]} == {"mae", "untrained network", "mean of training samples",
                                                 "nearest visible token", "nearest training sample"}
    assert any(a["name"] == "mae + ncm" for a in result["arms"]) and "standardised by itself" in told["unit"]
    assert summary(result).endswith(result["verdict"]["sentence"]) and told["verdict"]["sentence"] in summary(result)
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(UsageError, match="checkpoint"):
        own(moved, train, test)


def test_runs_without_such_a_task_are_refused(trained):
    with pytest.raises(UsageError, match="simclr predicts nothing"):
        own(trained, "digits:train", "digits:test")
    with pytest.raises(UsageError, match="nothing to compare"):
        evaluate(trained, train="digits:train", test="digits:test", metrics="held_out,label_free", progress=False)


CASES = [("mae", "digits"), ("simmim", "digits"), ("aim", "digits"), ("point_cmae", "shapes"), ("mae", "sentences"),
         ("clm", "sentences"), ("mlm", "sentences")]


@pytest.mark.parametrize(("name", "source"), CASES)
def test_costs_are_those_of_the_objective_on_whole_samples(name, source):
    data = open_source(f"{source}:test", cache=False).subset(np.arange(6))
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=data.spec.channels, size=data.spec.extent, dim=16, depth=1, heads=2,
                             **find(data.modality).backbone_options(data.spec))
    options = {"masked": 1.0, "random": 0.0} if name == "mlm" else {}
    method = registry.build("objective", name, network, data.spec, **options).eval()
    method.views = make_views("none", data.spec)
    batch = data.batch(np.arange(6))
    draws = Draws(Step(0, 1), torch.arange(6), 6)
    judged = method.judge(fit_samples(data, data.spec, np.arange(6)), draws)
    assert judged.error.shape == judged.asked.shape == judged.truth.shape[:2] and judged.asked.any(1).all()
    assert judged.causal == (name in ("aim", "clm"))
    cost, asked = (judged.error * judged.asked).sum(1), judged.asked.sum(1)
    with torch.no_grad():
        encoded = method.encode(batch, draws)
    if "asked" in encoded:
        assert torch.equal(encoded["asked"], asked.float())
        torch.testing.assert_close(encoded["error"], cost)
    elif name != "point_cmae":
        torch.testing.assert_close(encoded["loss"], cost / asked)
    if judged.unit != NATS:
        assert judged.unit == CHAMFER or source == "digits"
        assert (judged.measure(judged.truth, judged.truth) < 1e-9).all()
