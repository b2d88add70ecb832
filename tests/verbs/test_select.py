from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import osteon
from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data.ids import read_ids
from osteon.verbs.embed import embed
from osteon.verbs.select import select


def test_ids_are_written_best_first_and_every_verb_takes_them(archive, trained, tmp_path: Path) -> None:
    source = archive("pool.npz", 0, 80)
    found = select(source, method="k_centre", budget="25%", run=trained, out=tmp_path / "ids.csv", progress=False)
    assert found["selected"] == 20 and found["of"] == 80 and found["method"] == "k_centre"
    assert read_ids(tmp_path / "ids.csv") == found["ids"]
    part = open_source(found["use"])
    assert sorted(part.ids) == sorted(found["ids"])
    features = embed(trained, found["use"], out=tmp_path / "f")
    assert len(np.load(features / "features.npy")) == 20
    assert any("features: of simclr" in n for n in found["notes"])
    assert osteon.select is select


def test_features_of_the_run_decide(archive, trained, tmp_path: Path) -> None:
    from osteon.verbs._model import extract, load_trained

    source = archive("pool.npz", 0, 60)
    found = select(source, method="k-centre", budget=5, run=trained, out=tmp_path / "a.csv", progress=False, seed=1)
    model = load_trained(trained)
    data = open_source(source, like=model.spec)
    x = extract(model.backbone, data, model.spec)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = [data.ids.index(i) for i in found["ids"]]
    assert rows[0] == np.random.default_rng(1).integers(60)
    for i in range(1, 5):
        away = np.linalg.norm(x[:, None] - x[rows[:i]][None], axis=2).min(1)
        assert away[rows[i]] == pytest.approx(away.max(), rel=1e-4)
    pixels = select(source, method="k_centre", budget=5, out=tmp_path / "b.csv", progress=False, seed=1)
    assert pixels["ids"] != found["ids"] and any("no --run" in n for n in pixels["notes"])


def test_simcore_takes_what_is_like_the_target(digits, archive, tmp_path: Path) -> None:
    zeros = np.flatnonzero(digits.labels == 0)
    images = np.array(digits.images).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "target.npz", image=images[zeros[:30]])
    np.savez(tmp_path / "pool.npz", image=np.concatenate([images[zeros[30:70]], images[digits.labels == 1][:40],
                                                          images[digits.labels == 7][:40]]))
    found = select(tmp_path / "pool.npz", method="simcore", budget=30, target=tmp_path / "target.npz",
                   settings={"k": 10}, out=tmp_path / "ids.csv", progress=False)
    pool = open_source(tmp_path / "pool.npz")
    assert np.mean([pool.ids.index(i) < 40 for i in found["ids"]]) > 0.9
    auto = select(tmp_path / "pool.npz", method="simcore", budget="auto", target=tmp_path / "target.npz",
                  settings={"k": 10}, out=tmp_path / "ids.csv", progress=False)
    assert 30 < auto["selected"] < 120 and auto["budget"] == "auto"


def test_near_duplicates_of_planted_copies(archive, digits, tmp_path: Path) -> None:
    source = archive("pool.npz", 0, 12, change=lambda x: np.repeat(x, 3, axis=0),
                     label=np.repeat(digits.labels[:12], 3))
    found = select(source, method="near_duplicates", budget="auto", settings={"threshold": 0}, out=tmp_path / "i.csv",
                   progress=False)
    ids = open_source(source).ids
    assert {ids.index(i) for i in found["ids"]} <= set(range(0, 36, 3)) and found["selected"] >= 8


def test_el2n_finds_flipped_labels(archive, digits, tmp_path: Path) -> None:
    labels = digits.labels[:200].copy()
    wrong = np.random.default_rng(0).choice(200, 20, replace=False)
    labels[wrong] = (labels[wrong] + 1 + np.arange(20) % 9) % 10
    source = archive("noisy.npz", 0, 200, label=labels)
    found = select(source, method="el2n", budget=40, settings={"runs": 1, "epochs": 30},
                   out=tmp_path / "i.csv", progress=False)
    ids = open_source(source).ids
    rows = [ids.index(i) for i in found["ids"]]
    assert len(set(rows) & set(wrong.tolist())) >= 14  # chance: 4


def test_labels_may_come_from_another_source_by_id(archive, tmp_path: Path) -> None:
    settings = {"runs": 2, "epochs": 1}
    source = archive("labelled.npz", 0, 80)
    found = select(source, method="el2n", budget=40, settings=settings, out=tmp_path / "i.csv", progress=False)
    bare = archive("bare.npz", 0, 80, labels=False)
    by_id = select(bare, method="el2n", budget=40, settings=settings, train=source, out=tmp_path / "j.csv",
                   progress=False)
    assert by_id["ids"] == found["ids"]  # the same labels by another way, and the same networks
    assert select(source, method="el2n", budget=40, settings=settings, seed=1, out=tmp_path / "k.csv",
                  progress=False)["ids"] != found["ids"]


def test_grand_runs_on_real_networks(archive, tmp_path: Path) -> None:
    source = archive("pool.npz", 0, 40)
    found = select(source, method="grand", budget=7, settings={"runs": 1, "epochs": 1}, backbone="vit_tiny",
                   out=tmp_path / "i.csv", progress=False)
    assert found["selected"] == 7 and (np.diff([float(line.split(",")[1]) for line in
                                                (tmp_path / "i.csv").read_text().split()[1:]]) <= 0).all()


@pytest.mark.parametrize(("options", "what"), [
    ({"method": "k_center"}, "no selector called 'k_center'"), ({"method": "random", "budget": 41}, "more than the 40"),
    ({"method": "random", "budget": "auto"}, "no number of its own"), ({"method": "simcore"}, "resembles a target"),
    ({"method": "random", "target": "digits"}, "no use for a target"), ({"method": "random", "out": "ids.txt"}, ".csv"),
    ({"method": "random", "run": "somewhere"}, "compares no features"),
    ({"method": "random", "settings": {"k": 3}}, "Unknown setting 'k'"), ({"method": "el2n"}, "needs one label"),
    ({"method": "grand", "train": "digits:test"}, "have no label there")])
def test_what_cannot_be_is_said_and_nothing_is_written(archive, tmp_path: Path, options: dict, what: str) -> None:
    source = archive("pool.npz", 0, 40, labels=False)
    given = {"budget": 5, "out": tmp_path / "out" / "ids.csv", **options}
    with pytest.raises((UsageError, DataError), match=what):
        select(source, progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_the_command(archive, tmp_path: Path, capsys) -> None:
    import json

    from osteon import cli

    source = archive("pool.npz", 0, 40)
    for words, check in ((["--json"], lambda text: json.loads(text)["selected"] == 12),
                         ([], lambda text: "12 of 40 samples chosen" in text and f"@{tmp_path / 'i.csv'}" in text)):
        with pytest.raises(SystemExit) as leaving:
            cli.main(["select", str(source), "--method", "near-duplicates", "--budget", "30%", "--out",
                      str(tmp_path / "i.csv"), "--set", "similarity=embedding", "-q", *words])
        assert leaving.value.code == 0 and check(capsys.readouterr().out)
