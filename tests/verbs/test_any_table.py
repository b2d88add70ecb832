"""A run pre-trained on some tables, used on another with columns it has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.verbs._model import load_trained
from osteon.verbs.embed import embed
from osteon.verbs.evaluate import evaluate
from osteon.verbs.pretrain import pretrain


def write(path: Path, names: str, rows: int, seed: int, label: bool = False) -> Path:
    """Numbers about 0 or 2 and a category that goes with them."""
    rng = np.random.default_rng(seed)
    lines = [names + ",kind" + (",label" if label else "")]
    for i in range(rows):
        values = [f"{2 * (i % 2) + v:.3f}" for v in rng.standard_normal(len(names.split(",")))]
        lines.append(",".join([*values, "uv"[(i % 2) ^ int(rng.random() < 0.2)], *(["pq"[i % 2]] if label else [])]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    one, two = write(folder / "one.csv", "width,height", 40, 0), write(folder / "two.csv", "height,age,mass", 40, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSTEON_CACHE", str(folder / "cache"))
        for name, more in (("any", {"names": "pieces", "mix": {str(two): 0.5}}), ("own", {})):
            pretrain(one, objective="transtab", backbone="vit_tiny", steps=2, batch_size=16, out=folder / name,
                     settings={**more, "backbone.depth": 1, "partitions": 2}, progress=False, report=False)
        write(folder / "train.csv", "age,colour depth", 40, 2, True)
        lines = write(folder / "test.csv", "colour depth,age", 30, 3, True).read_text(encoding="utf-8").splitlines()
        (folder / "few.csv").write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
        yield folder


def test_features_of_test_rows_depend_on_the_training_rows_alone(place):
    whole, few = (np.load(embed(place / "any", place / f"{name}.csv", out=place / f"e {name}",
                                like=place / "train.csv") / "features.npy") for name in ("test", "few"))
    np.testing.assert_allclose(few, whole[:3], atol=1e-5)
    own = embed(place / "any", place / "few.csv", out=place / "e3")
    assert not np.allclose(np.load(own / "features.npy"), few, atol=1e-2)
    assert any("standardised by the rows of this source" in n for n in json.loads(
        (own / "info.json").read_text(encoding="utf-8"))["notes"])


def test_tables_of_training_are_known_again_and_searched_for_leaks(place):
    model = load_trained(place / "any")
    assert model.meta["sources"] == [str(place / "one.csv"), str(place / "two.csv")] and model.spec.extent == (4,)
    told = json.loads((embed(place / "any", place / "two.csv", out=place / "e4") / "info.json").read_text())["notes"]
    assert any("as in the data the model was trained on" in note for note in told)


def test_another_table_is_evaluated_beside_its_controls(place):
    result = evaluate(place / "any", train=place / "train.csv", test=place / "test.csv", metrics=("ncm",), seeds=1,
                      scratch_steps=2, out=place / "evaluation", progress=False)
    arms = {arm["name"]: arm["mean"] for arm in result["arms"]}
    assert arms["transtab + ncm"] > 0.5 and arms["logistic regression"] > 0.7 and result["test_samples"] == 30
    assert any(name.endswith("from scratch") for name in arms)


def test_a_network_of_one_table_says_how_any_could_be_read(place):
    with pytest.raises(UsageError, match="read by names"):
        embed(place / "own", place / "one.csv", out=place / "e5", like=place / "train.csv")
    with pytest.raises(Exception, match="names=cells"):
        embed(place / "own", place / "test.csv", out=place / "e5")


def test_every_table_of_a_folder_is_searched_for_leaks(place, tmp_path):
    two = [write(tmp_path / "both" / f"{name}.csv", columns, 20, seed) for name, columns, seed in (
        ("a", "width,height", 5), ("b", "age,colour depth", 2)) if (tmp_path / "both").mkdir(exist_ok=True) is None]
    run = pretrain(tmp_path / "both", objective="mae", backbone="vit_tiny", steps=1, batch_size=8, out=tmp_path / "run",
                   settings={"names": "cells", "backbone.depth": 1}, progress=False, report=False)
    assert load_trained(run).meta["sources"] == [str(file) for file in two]
    rows = (place / "train.csv").read_text(encoding="utf-8").splitlines()  # the first 20 of which are those of b.csv
    (tmp_path / "test.csv").write_text("\n".join([rows[0], *rows[1:9]]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="copies of test samples lie in the pre-training data.*b.csv"):
        evaluate(run, train=write(tmp_path / "train.csv", "age,colour depth", 30, 9, True), test=tmp_path / "test.csv",
                 metrics="ncm", seeds=1, scratch_steps=0, progress=False)
