from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.verbs import _networks
from osteon.verbs._model import load_trained
from osteon.verbs.evaluate import check_leaks, evaluate, summary
from osteon.verbs.pretrain import pretrain

QUICK: dict[str, Any] = {"metrics": ("ncm",), "seeds": 2, "scratch_steps": 0, "progress": False}
RUN: dict[str, Any] = {"objective": "simclr", "backbone": "resnet_tiny", "steps": 2, "batch_size": 16,
                       "progress": False, "report": False, "settings": {"precision": "32"}}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that may be written to."""
    return Path(shutil.copytree(trained, tmp_path / "simclr"))


@pytest.fixture
def apart(tmp_path_factory: pytest.TempPathFactory, digits) -> Path:
    """A run on digits that no test here evaluates on: the last 97."""
    folder = tmp_path_factory.mktemp("apart")
    np.savez(folder / "rest.npz", image=digits.images[1700:].transpose(0, 2, 3, 1))
    return pretrain(folder / "rest.npz", out=folder / "run", **RUN)


def test_every_arm_has_its_score_interval_and_controls(run, capsys):
    result = evaluate(run, train="digits:train", test="digits:test", metrics="ncm, knn", label_budget="20,all",
                      seeds=2, scratch_steps=2, progress=False)
    sources = {"simclr", "raw pixels", "image statistics", "untrained resnet_tiny", "resnet_tiny from scratch"}
    arms = result["arms"]
    assert {a["source"] for a in arms} == sources and {a["budget"] for a in arms} == {20, "all"}
    assert {a["source"] for a in arms if a["kind"] == "control"} == sources - {"simclr"}
    assert len(arms) == 2 * (4 * 2 + 1)
    for a in arms:
        assert 0 <= a["low"] <= a["mean"] <= a["high"] <= 1 and len(a["seeds"]) == 2
        assert a["mean"] == pytest.approx(np.mean(a["seeds"])) == pytest.approx(a["accuracy"])
        assert 0 <= a["macro_f1"] <= 1 and 0 <= a["auroc"] <= 1 and 0 <= a["validation"] <= 1
    raw = {a["budget"]: a["mean"] for a in arms if a["name"] == "raw pixels + ncm"}
    assert raw["all"] > 0.8 and raw["all"] > raw[20]  # digits are easy for raw pixels
    assert sum(result["support"].values()) == result["test_samples"] == len(open_source("digits:test"))
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["arms"] == arms and stored["verdict"]["answer"] in ("pays", "does not pay", "cannot tell")
    assert Path(result["report"]) == run / "evaluation.html" and Path(result["report"]).stat().st_size > 10_000
    table = summary(result)
    assert table.endswith(result["verdict"]["sentence"]) and "20 labels" in table and "raw pixels + knn" in table
    assert capsys.readouterr().err == ""


def test_the_same_evaluation_gives_the_same_scores(run, tmp_path):
    results = [evaluate(run, train="digits:train", test="digits:test", out=tmp_path / n, **QUICK) for n in "ab"]
    for result in results:
        for a in result["arms"]:
            a.pop("wall_s")
    assert results[0]["arms"] == results[1]["arms"] and results[0]["verdict"] == results[1]["verdict"]
    assert (tmp_path / "a" / "report.html").exists()


def test_runs_of_one_recipe_are_its_seeds(run, tmp_path):
    other = pretrain("digits:train", out=tmp_path / "other", seed=1, **RUN)
    third = pretrain("digits:train", out=tmp_path / "third", seed=2, **RUN)
    both, alone = (evaluate(r, train="digits:train", test="digits:test", out=tmp_path / "e", **QUICK)
                   for r in ([run, other], run))
    one, two = (next(a for a in r["arms"] if a["source"] == "simclr") for r in (both, alone))
    assert one["seeds"][0] == two["seeds"][0] and one["seeds"][1] != two["seeds"][1]
    many = evaluate([run, other, third], train="digits:train", test="digits:test", out=tmp_path / "e", **QUICK)
    assert any("3 runs of one recipe" in note and "first 2" in note for note in many["notes"])
    assert next(a for a in many["arms"] if a["source"] == "simclr")["seeds"] == one["seeds"]


def test_fine_tuning_beside_training_from_scratch(run, archive, tmp_path):
    train, test = archive("a.npz", 0, 60), archive("b.npz", 60, 90)
    apart = pretrain(archive("c.npz", 200, 240), out=tmp_path / "apart", **RUN)
    result = evaluate(apart, train=train, test=test, metrics=("fine_tune",), seeds=1, scratch_steps=2, progress=False)
    assert [a["name"] for a in result["arms"]] == ["simclr + fine-tuned", "resnet_tiny from scratch"]


def test_scores_without_labels_describe_the_features(run):
    result = evaluate(run, train="digits:train", test="digits:test", **{**QUICK, "metrics": ("ncm", "label_free")})
    numbers = result["label_free"]["simclr"]["label_free"]
    assert all(np.isfinite(v) for v in numbers.values()) and len(numbers) > 2
    assert {a["evaluator"] for a in result["arms"]} == {"ncm"}


@pytest.mark.parametrize(("options", "named"), [
    ({"metrics": ("kn",)}, "Did you mean 'knn'"), ({"metrics": ()}, "nothing to compare"),
    ({"metrics": ("label_free",)}, "nothing to compare"), ({"metrics": ("fine_tune",)}, "nothing to compare"),
    ({"label_budget": (0,)}, "label budget"), ({"label_budget": ("ten",)}, "label budget"),
    ({"label_budget": ()}, "one label budget"), ({"label_budget": (10**6,)}, "more than the"),
    ({"seeds": 0}, "one seed"), ({"leaks": "ignore"}, "leaks"), ({"train": "digit"}, "digits")])
def test_wrong_use_is_refused_in_words(run, options, named):
    asked = {**QUICK, "train": "digits:train", "test": "digits:test", **options}
    with pytest.raises((UsageError, DataError), match=named):
        evaluate(run, **asked)
    assert not (run / "evaluation.json").exists()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train here: starting processes costs seconds; the result is the same."""
    monkeypatch.setattr(_networks, "cores", lambda: 1)


def test_a_pool_of_processes_gives_the_scores_of_one(apart, archive, monkeypatch):
    train, test = archive("a.npz", 0, 40), archive("b.npz", 40, 60)
    arms = []
    for cores in (1, 2):
        monkeypatch.setattr(_networks, "cores", lambda cores=cores: cores)
        result = evaluate(apart, train=train, test=test, **{**QUICK, "scratch_steps": 2})
        arms.append([{k: v for k, v in a.items() if k != "wall_s"} for a in result["arms"]])
    assert arms[0] == arms[1]


# -- leaks -----------------------------------------------------------------------------------------------------------


def test_planted_copies_in_train_are_an_error_dropped_or_allowed(apart, archive, digits):
    train = archive("train.npz", 0, 100)
    test = archive("test.npz", 95, 140)  # five of them are in train
    with pytest.raises(DataError, match="5 exact and 0 near copies of test samples lie in --train") as refused:
        evaluate(apart, train=train, test=test, **QUICK)
    assert refused.value.code == 2 and "--leaks drop" in refused.value.fix
    dropped = evaluate(apart, train=train, test=test, leaks="drop", **QUICK)
    allowed = evaluate(apart, train=train, test=test, leaks="allow", **QUICK)
    assert (dropped["test_samples"], allowed["test_samples"]) == (40, 45)
    assert any(n.startswith("LEAK (dropped): 5 exact") for n in dropped["notes"])
    assert any(n.startswith("LEAK (allowed): 5 exact") for n in allowed["notes"])
    clean = evaluate(apart, train=train, test=archive("clean.npz", 100, 140), **QUICK)
    for a, b in zip(dropped["arms"], clean["arms"], strict=True):
        assert (a["name"], a["mean"]) == (b["name"], b["mean"])
    assert not any("LEAK" in n for n in clean["notes"])
    with pytest.raises(DataError, match="Every test sample"):
        evaluate(apart, train=train, test=train, leaks="drop", **QUICK)


def test_planted_copies_in_the_data_of_pre_training_are_found(tmp_path, archive):
    seen = archive("seen.npz", 100, 140, labels=False)
    run = pretrain(seen, out=tmp_path / "run", **RUN)
    train, test = archive("train.npz", 0, 60), archive("test.npz", 130, 170)
    with pytest.raises(DataError, match="10 exact .* lie in the pre-training data .*seen.npz"):
        evaluate(run, train=train, test=test, **QUICK)
    assert evaluate(run, train=train, test=test, leaks="drop", **QUICK)["test_samples"] == 30
    seen.unlink()
    unchecked = evaluate(run, train=train, test=test, **QUICK)
    assert any("could not be opened" in n and "unchecked" in n for n in unchecked["notes"])


def test_groups_on_both_sides_are_a_leak(apart, archive):
    train = archive("train.npz", 0, 100, group=[f"patient {i // 5}" for i in range(100)])
    test = archive("test.npz", 100, 140, group=[f"patient {i // 5 + 18}" for i in range(40)])
    with pytest.raises(DataError, match=r"2 groups lie in both --train and --test, e.g. 'patient 18'"):
        evaluate(apart, train=train, test=test, **QUICK)
    assert evaluate(apart, train=train, test=test, leaks="drop", **QUICK)["test_samples"] == 30
    assert evaluate(apart, train=train, test=test, leaks="allow", **QUICK)["test_samples"] == 40


def test_a_group_of_the_data_of_pre_training_does_not_test(tmp_path, archive):
    seen = archive("seen.npz", 0, 40, labels=False, group=[f"patient {i // 5}" for i in range(40)])
    run = pretrain(seen, out=tmp_path / "run", **RUN)
    train = archive("train.npz", 50, 100, group=[f"patient {i // 5 + 20}" for i in range(50)])
    test = archive("test.npz", 100, 140, group=[f"patient {i // 5 + 7}" for i in range(40)])
    with pytest.raises(DataError, match=r"1 groups lie in both the pre-training data .*seen.npz"):
        evaluate(run, train=train, test=test, **QUICK)
    assert evaluate(run, train=train, test=test, leaks="drop", **QUICK)["test_samples"] == 35


def test_a_sample_without_a_group_shares_none(apart, archive):
    datasets = [open_source(archive(f"{n}.npz", start, start + 20, group=["", *[f"{n}{i}" for i in range(19)]]))
                for n, start in (("a", 0), ("b", 20))]
    test, notes = check_leaks([load_trained(apart)], *datasets, "error")
    assert len(test) == 20 and not any("LEAK" in n for n in notes)


# -- kinds of data ---------------------------------------------------------------------------------------------------


def test_several_labels_a_sample(apart, archive, digits):
    y = digits.labels
    marks = np.stack([y % 2 == 0, y > 4, y % 3 == 0], 1).astype(np.uint8)
    train, test = (archive(f"{n}.npz", a, b, label=marks[a:b]) for n, a, b in (("train", 0, 200), ("test", 200, 300)))
    result = evaluate(apart, train=train, test=test, label_budget=(30, "all"), **{
        **QUICK, "metrics": ("knn", "linear_probe"), "scratch_steps": 2})
    assert result["metric"] == "label-ranking average precision" and result["classes"] == 3
    assert list(result["support"].values()) == marks[200:300].sum(0).tolist()
    raw = next(a for a in result["arms"] if a["name"] == "raw pixels + knn" and a["budget"] == "all")
    assert raw["mean"] > 0.8 and 0 < raw["mean_average_precision"] <= 1
    json.loads((apart / "evaluation.json").read_text())


def test_a_multi_label_manifest(apart, tmp_path, digits):
    from PIL import Image

    for name, rows in (("train", range(60)), ("test", range(60, 100))):
        (tmp_path / name).mkdir()
        lines = ["path,labels"]
        for row in rows:
            Image.fromarray(digits.images[row, 0]).save(tmp_path / name / f"{row}.png")
            digit = int(digits.labels[row])
            words = ["even" if digit % 2 == 0 else "odd", *(["large"] if digit > 4 else [])]
            lines.append(f"{name}/{row}.png,{';'.join(words)}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    result = evaluate(apart, train=tmp_path / "train.csv", test=tmp_path / "test.csv", **QUICK)
    assert result["classes"] == 3 and set(result["support"]) == {"even", "large", "odd"}


@pytest.mark.parametrize(("kind", "channels", "scale"), [("sixteen", 1, 65535.0), ("four", 4, 255.0),
                                                         ("float", 2, 1.0)])
def test_unusual_pixels_go_all_the_way(tmp_path, archive, kind, channels, scale):
    change = {"sixteen": lambda x: x.astype(np.uint16) * 257, "four": lambda x: np.repeat(x, 4, axis=3),
              "float": lambda x: np.repeat(x, 2, axis=3).astype(np.float32) / 100 - 1}[kind]
    seen, train, test = (archive(f"{n}.npz", a, b, change=change) for n, a, b in (
        ("seen", 0, 60), ("train", 60, 160), ("test", 160, 200)))
    run = pretrain(seen, out=tmp_path / "run", **{**RUN, "report": True})
    spec = load_trained(run).spec
    assert (spec.channels, spec.scale) == (channels, scale)
    result = evaluate(run, train=train, test=test, **{**QUICK, "seeds": 1, "scratch_steps": 1})
    assert next(a for a in result["arms"] if a["source"] == "raw pixels")["mean"] > 0.6
    assert (run / "report.html").exists() and (run / "evaluation.html").exists()


def test_a_channel_mismatch_is_an_error_or_a_stated_rule(apart, tmp_path, archive):
    rgb, four = (archive(f"{n}.npz", 0, 60, change=lambda x, n=n: np.repeat(x, n, axis=3)) for n in (3, 4))
    test = archive("test.npz", 60, 90)
    with pytest.raises(DataError, match="4 channels, the model was trained on 1"):
        evaluate(apart, train=four, test=test, **QUICK)
    result = evaluate(apart, train=rgb, test=test, **QUICK)  # colour becomes grey, as it was in pre-training
    assert any("channels: 1 (rule: as in the data the model was trained on)" in n for n in result["notes"])


def test_classes_that_differ_are_an_error_and_missing_ones_are_not(apart, archive, digits):
    names = [f"digit {i}" for i in range(10)]
    train = archive("train.npz", 0, 120, class_names=names)
    few = np.flatnonzero(digits.labels[120:200] < 4)
    some = archive("some.npz", 120, 200)
    np.savez(some, image=digits.images[120:200][few].transpose(0, 2, 3, 1), label=digits.labels[120:200][few],
             class_names=names[:4])
    result = evaluate(apart, train=train, test=some, **QUICK)
    assert result["support"] == {**dict.fromkeys(names, 0), **{
        n: int((digits.labels[120:200] == i).sum()) for i, n in enumerate(names[:4])}}
    text = (apart / "evaluation.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    other = archive("other.npz", 200, 260, class_names=[*names[:9], "zero"])
    with pytest.raises(DataError, match="'zero' does not occur in the training data"):
        evaluate(apart, train=train, test=other, **QUICK)


def test_one_class_in_the_test_data_is_evaluated_as_far_as_it_goes(apart, archive, digits, tmp_path):
    zeros = np.flatnonzero(digits.labels[120:400] == 0)
    names = [str(i) for i in range(10)]
    np.savez(tmp_path / "zeros.npz", image=digits.images[120:400][zeros].transpose(0, 2, 3, 1),
             label=digits.labels[120:400][zeros], class_names=names)
    result = evaluate(apart, train=archive("train.npz", 0, 120, class_names=names), test=tmp_path / "zeros.npz",
                      **QUICK)
    assert all(a["auroc"] is None for a in result["arms"])  # no negative of any class: not defined, and no NaN
    json.loads((apart / "evaluation.json").read_text(), parse_constant=lambda w: pytest.fail(w))
    same = {"label": np.zeros(20, int), "class_names": ["zero"]}
    with pytest.raises(UsageError, match="at least two classes"):
        evaluate(apart, train=archive("one.npz", 0, 20, **same), test=archive("two.npz", 20, 40, **same), **QUICK)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_handful_of_labels_work_or_are_refused_in_words(apart, archive, samples):
    train, test = archive("train.npz", 0, samples), archive("test.npz", 100, 100 + samples)
    try:
        result = evaluate(apart, train=train, test=test, metrics="knn,ncm,linear_probe", seeds=1, scratch_steps=1,
                          progress=False)
    except (UsageError, DataError) as error:
        assert error.what and error.where
    else:
        assert result["verdict"]["answer"] == "cannot tell"


def test_three_samples_of_two_classes_cannot_tell(apart, archive):
    names = ["low", "high"]
    train = archive("train.npz", 0, 3, label=np.array([0, 1, 0]), class_names=names)
    test = archive("test.npz", 100, 103, label=np.array([0, 1, 1]), class_names=names)
    result = evaluate(apart, train=train, test=test, metrics="knn,ncm,linear_probe", seeds=1, scratch_steps=1,
                      progress=False)
    assert result["verdict"]["answer"] == "cannot tell"


def test_unlabelled_data_are_refused(apart, archive):
    with pytest.raises(UsageError, match="--test.*|needs labels"):
        evaluate(apart, train=archive("a.npz", 0, 50), test=archive("b.npz", 50, 80, labels=False), **QUICK)
