from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.verbs.continual import continual, summary


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> dict:
    """A few hundred digits."""
    from osteon.data import open_source

    folder, digits = tmp_path_factory.mktemp("few"), open_source("digits", cache=False)
    for name, start, stop in (("train", 0, 300), ("test", 1400, 1600)):
        np.savez(folder / f"{name}.npz", image=np.array(digits.images[start:stop]).transpose(0, 2, 3, 1),
                 label=digits.labels[start:stop])
    return {"train": folder / "train.npz", "test": folder / "test.npz", "progress": False, "leaks": "drop"}


@pytest.fixture(scope="module")
def found(trained_once: Path, few: dict, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("continual")
    settings = {"seq.warmup_epochs": 0, "seq.batch_size": 16}
    return continual(trained_once, tasks=3, epochs=3, settings=settings, out=out, **few), out


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    from tests.verbs.conftest import QUICK

    from osteon.verbs.pretrain import pretrain

    return pretrain("digits:train", out=tmp_path_factory.mktemp("run") / "simclr", **QUICK)


def test_methods_and_controls_with_all_numbers(found: tuple[dict, Path]) -> None:
    result, out = found
    assert list(result["methods"]) == ["nmc", "seq", "joint", "sequential", "sequential_head"]
    assert sorted(c for t in result["tasks"] for c in t) == [str(i) for i in range(10)]
    for name, row in result["methods"].items():
        assert row["final"] == row["steps"][-1] and row["average"] == pytest.approx(np.mean(row["steps"]))
        if name == "joint":
            assert row["forgetting"] is None and len(row["matrix"]) == 1 and len(row["matrix"][0]) == 3
            continue
        assert [len(r) for r in row["matrix"]] == [1, 2, 3]
        m = row["matrix"]
        lost = (max(m[0][0], m[1][0]) - m[2][0] + m[1][1] - m[2][1]) / 2
        assert row["forgetting"] == pytest.approx(lost)
    assert json.loads((out / "continual.json").read_text()) == json.loads(json.dumps(result))
    text = summary(result)
    assert "forgetting" in text and text.index("joint") < text.index("sequential")


def test_no_forgetting_by_means_and_much_by_fine_tuning(found: tuple[dict, Path]) -> None:
    rows = found[0]["methods"]
    assert rows["nmc"]["final"] > rows["sequential"]["final"] + 0.2
    assert rows["sequential"]["forgetting"] > 0.5 > rows["nmc"]["forgetting"]
    # these left the backbone as it was
    assert rows["nmc"]["probe"] == rows["seq"]["probe"] == rows["sequential_head"]["probe"]
    assert rows["sequential"]["probe_first"] > 0.8  # the features still know what the classifier forgot


def test_the_seed_orders_the_classes(trained_once: Path, few: dict) -> None:
    runs = [continual(trained_once, tasks=2, methods=["nmc"], controls=(), seed=s, **few) for s in (0, 1, 0)]
    assert runs[0]["tasks"] != runs[1]["tasks"] and runs[0] == runs[2]
    assert runs[0]["methods"]["nmc"]["final"] == pytest.approx(runs[1]["methods"]["nmc"]["final"])


def test_what_cannot_be_is_said(trained_once: Path, few: dict, archive, tmp_path: Path) -> None:
    bare = archive("bare.npz", 0, 40, labels=False)
    for given, what in (({"tasks": 11}, "10 classes cannot be dealt into 11 tasks"),
                        ({"methods": ["ties"]}, "merges weights"), ({"methods": ["nmd"]}, "Did you mean 'nmc'"),
                        ({"settings": {"head": "linear"}}, "'head' belongs"), ({"train": bare}, "one label a sample"),
                        ({"settings": {"seq.heads": 1}}, "Unknown setting 'heads'"),
                        ({"test": "digits:train", "leaks": "error"}, "copies of test samples"),
                        ({"controls": ["jont"]}, "Did you mean 'joint'"),
                        ({"methods": (), "controls": ()}, "nothing to")):
        with pytest.raises((UsageError, DataError), match=what):
            continual(trained_once, out=tmp_path / "o", **{**few, **given})
        assert not (tmp_path / "o").exists()


def test_merge_and_continual_send_to_each_other(trained_once: Path, tmp_path: Path) -> None:
    from osteon.verbs.merge import merge

    with pytest.raises(UsageError, match="learns tasks one after another") as error:
        merge([trained_once, trained_once], method="nmc", out=tmp_path / "x", progress=False)
    assert "osteon continual" in error.value.fix


def test_the_command(trained_once: Path, few: dict, capsys) -> None:
    from osteon import cli

    with pytest.raises(SystemExit) as leaving:
        cli.main(["continual", str(trained_once), "--train", str(few["train"]), "--test", str(few["test"]), "--tasks",
                  "2", "--method", "nmc", "--controls", "", "--set", "metric=cosine", "--leaks", "drop", "-q"])
    assert leaving.value.code == 0 and "first task" in capsys.readouterr().out
