"""What every registered evaluator must satisfy; having a card is enough to be held to it."""

import inspect

import numpy as np
import pytest

from osteon.core import registry
from osteon.core.errors import DataError
from osteon.core.run import RunFolder
from osteon.modalities import NAMES
from osteon.verbs._analyses import ANALYSES
from osteon.verbs._analysis_context import Context
from osteon.verbs._model import Trained
from tests.contracts import modality_kit

CARDS = registry.cards(kind="evaluator")
CLASSES = 4


def _needs(card) -> str:
    return registry.load(card).needs


SUPERVISED = [c.name for c in CARDS if _needs(c) == "labels"]
FREE = [c.name for c in CARDS if _needs(c) in ("features", "views")]


def features(seed: int, n: int, signal: float = 1.5, d: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    centres = np.random.default_rng(1234).normal(size=(CLASSES, d))
    return (signal * centres[y] + rng.normal(size=(n, d))).astype(np.float32), y


def score(name: str, x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int = CLASSES,
          seed: int = 0) -> np.ndarray:
    return registry.build("evaluator", name)(x, y, test, classes=classes, seed=seed)


def test_every_evaluator_is_of_a_known_kind() -> None:
    assert {"knn", "ncm", "linear_probe", "few_shot"} <= set(SUPERVISED) and "label_free" in FREE
    tasks = {c.name for c in CARDS if _needs(c) == "objective"}  # asked of a run, see tests/verbs/test_held_out.py
    assert len(SUPERVISED) + len(FREE) + len(tasks) == len(CARDS) and tasks == {"held_out"}


@pytest.mark.parametrize("name", [c.name for c in CARDS])
def test_options_are_keyword_only_and_have_defaults(name: str) -> None:
    settings = list(inspect.signature(registry.load(registry.find("evaluator", name))).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in settings)


@pytest.mark.parametrize("name", SUPERVISED)
def test_planted_signal_is_found_and_noise_is_not(name: str) -> None:
    (x, y), (test, truth) = features(0, 240), features(1, 400)
    assert (score(name, x, y, test).argmax(1) == truth).mean() > 0.8
    noise = [(score(name, features(s, 240, 0.0)[0], y, features(s + 1, 400, 0.0)[0]).argmax(1) == truth).mean()
             for s in (2, 4, 6)]
    assert abs(np.mean(noise) - 1 / CLASSES) < 0.06


@pytest.mark.parametrize("name", SUPERVISED)
def test_scores_are_probabilities(name: str) -> None:
    (x, y), (test, _) = features(0, 60), features(1, 30)
    scores = score(name, x, y, test)
    assert isinstance(scores, np.ndarray) and scores.shape == (30, CLASSES)
    assert scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("name", SUPERVISED)
def test_same_features_same_scores(name: str) -> None:
    (x, y), (test, _) = features(0, 80), features(1, 30)
    for seed in (0, 5):
        assert np.array_equal(score(name, x, y, test, seed=seed), score(name, x, y, test, seed=seed))
    before = x.copy(), y.copy(), test.copy()
    score(name, x, y, test)
    assert all(np.array_equal(a, b) for a, b in zip(before, (x, y, test), strict=True))  # inputs are left alone


@pytest.mark.parametrize("name", SUPERVISED)
def test_nothing_is_fitted_on_test(name: str) -> None:
    """A test sample's scores depend on no other test sample."""
    (x, y), (test, _) = features(0, 120, 0.5), features(1, 60, 0.5)
    whole = score(name, x, y, test)
    for rows in ([7], [3, 59], list(range(0, 60, 2))):
        assert np.allclose(score(name, x, y, test[rows]), whole[rows], atol=1e-5), "other rows were removed"
    changed = test.copy()
    changed[10:] = 1000 * changed[10:] + 50
    assert np.allclose(score(name, x, y, changed)[:10], whole[:10], atol=1e-5), "other rows were changed"
    assert np.allclose(score(name, x, y, test[::-1])[::-1], whole, atol=1e-5), "rows were reordered"


@pytest.mark.parametrize("name", SUPERVISED)
def test_labels_carry_no_order(name: str) -> None:
    """Renaming the classes renames the columns (seeds may draw other samples, so with the draw taken out: means)."""
    (x, y), (test, truth) = features(0, 240), features(1, 200)
    rename = np.array([2, 0, 3, 1])
    renamed = score(name, x, rename[y], test)
    assert abs((renamed.argmax(1) == rename[truth]).mean() - (score(name, x, y, test).argmax(1) == truth).mean()) < 0.1


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_class_without_training_samples_is_never_told(name: str) -> None:
    (x, y), (test, _) = features(0, 120), features(1, 40)
    keep = y != 2
    scores = score(name, x[keep], y[keep], test, classes=CLASSES + 1)
    assert scores.shape == (40, CLASSES + 1) and not np.isin(scores.argmax(1), (2, CLASSES)).any()


@pytest.mark.parametrize("name", SUPERVISED)
def test_one_sample_a_class_and_read_only_input(name: str) -> None:
    (x, y), (test, _) = features(0, 40), features(1, 10)
    rows = np.array([np.flatnonzero(y == c)[0] for c in range(CLASSES)])
    few = x[rows].astype(np.float16)
    few.flags.writeable = False
    assert np.isfinite(score(name, few, y[rows], test)).all()


@pytest.mark.parametrize("name", SUPERVISED)
def test_broken_input_is_refused(name: str) -> None:
    (x, y), (test, _) = features(0, 40), features(1, 10)
    broken = test.copy()
    broken[3, 0] = np.inf
    for bad in ((x, y, broken), (x, y[1:], test), (x, y - 1, test), (x, y, test[:, 1:])):
        with pytest.raises(DataError):
            score(name, *bad)


@pytest.mark.parametrize("name", [n for n in SUPERVISED if n != "few_shot"])
def test_multi_label(name: str) -> None:
    (x, y), (test, truth) = features(0, 300), features(1, 200)
    labels, wanted = (np.stack([v == 0, v == 1, v >= 2], 1).astype(np.uint8) for v in (y, truth))
    scores = score(name, x, labels, test, classes=3)
    assert scores.shape == (200, 3) and scores.min() >= 0 and scores.max() <= 1
    assert ((scores >= 0.5) == wanted).mean() > 0.85
    empty = labels.copy()
    empty[:, 1], empty[:, 2] = 0, 1  # a label nobody has and one everybody has
    odd = score(name, x, empty, test, classes=3)
    assert np.isfinite(odd).all() and odd[:, 1].max() < 0.5 < odd[:, 2].min()


@pytest.mark.parametrize("name", FREE)
def test_label_free_numbers(name: str) -> None:
    x, _ = features(0, 100)
    other = x + 0.1 * features(1, 100, 0.0)[0]
    args = (x, other) if _needs(registry.find("evaluator", name)) == "views" else (x,)
    found = registry.build("evaluator", name)(*args)
    assert found and all(isinstance(v, float) and np.isfinite(v) for v in found.values())
    assert found == registry.build("evaluator", name)(*args)
    assert found != registry.build("evaluator", name)(*(np.ones_like(a) for a in args))


#: analyses that `make test` holds on every modality; `make contracts` takes all but those about a run's folder
QUICK = ("spectrum", "cka", "utilised_rank", "signal_propagation", "layer_masking")


@pytest.mark.parametrize("modality", NAMES[1:])
def test_analyses_look_inside_networks_of_every_modality(modality: str, tmp_path) -> None:
    data = modality_kit.data(modality)
    model = Trained(modality_kit.network(modality), data.spec, {}, "small")
    found = Context(model, data, RunFolder(tmp_path), model, data, directions=(2,), fit_epochs=1)
    for name in (set(ANALYSES) - {"projection_head", "feasibility"} if modality_kit.LONG else QUICK):
        section = ANALYSES[name](found)
        root = name == "layer_masking" and getattr(model.backbone, "pool", "") == "first"
        few = name == "linearity" and "four times" in section.skipped
        assert bool(section.skipped) == (root or few), (name, section.skipped)
        assert section.skipped or section.findings and section.rows
        assert all(f.threshold and "(" in f.source for f in section.findings)
        if name == "cka":
            assert section.findings[-1].value == pytest.approx(1, abs=1e-6), "the same network, unlike itself"
