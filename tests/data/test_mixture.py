"""Mixtures: shares hold in each phase, the switch is where it was asked for, and a step says all by itself."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset, Loader
from osteon.data import mixture as module
from osteon.data.mixture import Mixture, Stack, open_mixed, read_shares


def shares(*others: str) -> tuple[Fraction, ...]:
    rest = [Fraction(o) for o in others]
    return 1 - sum(rest, Fraction(0)), *rest


def mixture(sizes=(100, 10), base=("0.02",), final=("0.4",), share=0.8, steps=100) -> Mixture:
    return Mixture(sizes, shares(*base), shares(*final), share).over(steps)


def sources(made: Mixture, start: int, stop: int, batch: int) -> np.ndarray:
    """How many samples of each source come in some steps."""
    rows = np.concatenate([made.rows(step, batch, 7) for step in range(start, stop)])
    assert len(rows) == (stop - start) * batch
    return np.bincount(np.searchsorted(np.cumsum(made.sizes), rows, side="right"), minlength=len(made.sizes))


def test_shares_hold_in_each_phase_to_a_sample():
    made = mixture()
    assert made.switch == 80
    assert sources(made, 0, 80, 16).tolist() == [1280 - 25, 25]  # floor(0.02 * 1280 = 25.6)
    assert sources(made, 80, 100, 16).tolist() == [192, 128]
    for step in range(0, 100, 9):
        (_, few), early = sources(made, step, step + 1, 16), step < 80
        assert few in ((0, 1) if early else (6, 7))
    three = mixture((50, 7, 9), ("0.1", "0"), ("0.1", "0.25"), 0.5)
    assert sources(three, 0, 50, 20).tolist() == [900, 100, 0]
    assert sources(three, 50, 100, 20).tolist() == [650, 100, 250]


def test_the_total_is_unchanged_and_every_step_is_a_function_of_its_number():
    made = mixture()
    for step in (0, 79, 80, 99):
        rows = made.rows(step, 16, 7)
        assert len(rows) == 16 and rows.dtype == np.int64
        assert np.array_equal(rows, mixture().rows(step, 16, 7)) and not np.array_equal(rows, made.rows(step, 16, 8))


def test_the_first_phase_knows_nothing_of_the_second():
    plain, late = mixture(final=("0.02",)), mixture()
    assert all(np.array_equal(plain.rows(s, 16, 7), late.rows(s, 16, 7)) for s in range(80))
    assert not np.array_equal(plain.rows(80, 16, 7), late.rows(80, 16, 7))


def test_each_source_goes_through_its_own_permutations_over_the_switch():
    made = mixture(sizes=(1000, 10))
    rows = np.concatenate([made.rows(step, 16, 7) for step in range(100)])
    small, large = rows[rows >= 1000] - 1000, rows[rows < 1000]
    assert len(small) == 25 + 128 and np.bincount(small, minlength=10).min() == 15  # 15 whole passes and 3 more
    counts = np.bincount(large, minlength=1000)
    assert counts.max() - counts.min() == 1
    first = [r for s in range(80) for r in np.sort(made.rows(s, 16, 7)) if r >= 1000][:10]
    assert sorted(first) == list(range(1000, 1010))
    again = [r for s in range(80) for r in np.sort(made.rows(s, 16, 7)) if r >= 1000][10:20]
    assert sorted(again) == list(range(1000, 1010)) and again != first


def test_sources_are_mixed_within_a_batch():
    places = np.concatenate([np.flatnonzero(mixture().rows(s, 16, 7) >= 100) for s in range(80, 100)])
    assert abs(places.mean() - 7.5) < 1.2


def data(n: int, value: int, classes: tuple[str, ...] = (), side: int = 4) -> Dataset:
    images = np.full((n, 1, side, side), value, np.uint8) + np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    labels = np.arange(n) % len(classes) if classes else None
    return Dataset.from_arrays(images, labels, class_names=classes)


@pytest.fixture
def known(monkeypatch) -> dict[str, Dataset]:
    found = {"a": data(30, 0), "b": data(5, 100), "c": data(8, 200), "odd": data(8, 0, side=6),
             "a2": data(30, 0, ("x", "y")), "b2": data(6, 50, ("x", "y")), "c2": data(6, 50, ("x", "z"))}
    monkeypatch.setattr(module, "open_source", lambda name, **_: found[name])
    return found


def test_a_mixed_source_holds_all_and_the_loader_follows_it(known):
    mixed = open_mixed("a", mix="b=0.25", upsample={"c": 0.5}, switch=0.5)
    assert len(mixed) == 43 and mixed.images.shape == (43, 1, 4, 4)
    mixed.mixture = mixed.mixture.over(10)
    loader = Loader(mixed, 8, seed=3)
    assert Loader(mixed, 8, seed=3).rows(7).tolist() == loader.rows(7).tolist() == mixed.mixture.rows(7, 8, 3).tolist()
    values = [np.sort(loader.at(step)["image"][:, 0, 0, 0].numpy()) // 100 for step in (0, 7)]
    assert values[0].tolist() == [0] * 6 + [1] * 2 and values[1].tolist() == [0] * 2 + [1] * 2 + [2] * 4
    halves = [Loader(mixed, 8, 3, rank=r, world=2).at(7)["index"].tolist() for r in (0, 1)]
    assert halves[0] + halves[1] == loader.rows(7).tolist()
    twice = Loader(mixed, 16, 3, repeats=2).rows(7).tolist()
    assert twice[:8] == twice[8:] == loader.rows(7).tolist()
    assert mixed.subset([1, 2]).mixture is None


def test_a_source_left_out_of_the_last_phase_keeps_the_data_as_they_are(known):
    with_it, without = (open_mixed("a", mix="b=0.25", upsample=wish) for wish in ("b=0.5", "b=0"))
    assert with_it.fingerprint == without.fingerprint and without.mixture.final == (1, 0)


def test_nothing_mixed_in_is_the_source_itself(known):
    assert open_mixed("a") is known["a"] and open_mixed("a", mix={}, switch=0.3) is known["a"]


def test_labels_stay_where_classes_agree(known):
    same = open_mixed("a2", mix="b2=0.1")
    assert same.labels.tolist() == [*(np.arange(30) % 2), *(np.arange(6) % 2)] and same.class_names == ["x", "y"]
    for other in ("c2", "b"):
        mixed = open_mixed("a2", mix=f"{other}=0.1")
        assert mixed.labels is None and mixed.spec.num_classes == 0 and "left out" in mixed.notes[-1]
    assert len(set(same.ids)) == 36 and same.fingerprint != known["a2"].fingerprint


def test_other_shapes_are_refused(known):
    with pytest.raises(DataError, match="6, 6"):
        open_mixed("a", mix="odd=0.1")


def test_notes_tell_shares_and_passes():
    lines = mixture().notes(["web.txt", "plays.txt"], 100, 16)
    assert lines == ["mixture: web.txt, 100 samples: 0.98 of a batch and 12.55 passes before step 80, 0.6 and 1.92 "
                     "passes from then on",
                     "mixture: plays.txt, 10 samples: 0.02 of a batch and 2.50 passes before step 80, 0.4 and 12.80 "
                     "passes from then on"]


@pytest.mark.parametrize("wish", ["b=0.02, c/d.txt=0.3", ["b=0.02", "c/d.txt=0.3"], {"b": 0.02, "c/d.txt": 0.3}])
def test_shares_in_every_way_they_are_written(wish):
    assert read_shares(wish, "mix") == {"b": Fraction(1, 50), "c/d.txt": Fraction(3, 10)}
    assert read_shares(None, "mix") == {} == read_shares("", "mix")


@pytest.mark.parametrize("wish", ["b", "b=", "=0.5", "b=1.5", "b=-0.1", "b=x", "b=0.1,b=0.2", {"b": None},
                                  "b=1/0", "b=nan"])
def test_bad_shares(wish):
    with pytest.raises(UsageError, match="no source with its share"):
        read_shares(wish, "mix")


def test_shares_above_one_small_batches_and_bad_switches_are_refused(known):
    with pytest.raises(UsageError, match="come to 1.1"):
        read_shares("b=0.6,c=0.5", "mix")
    with pytest.raises(UsageError, match="come to 1.1"):
        open_mixed("a", mix="b=0.6", upsample="c=0.5")
    with pytest.raises(UsageError, match="no share of the steps"):
        open_mixed("a", mix="b=0.6", switch=1.2)
    with pytest.raises(UsageError, match="too small"):
        mixture((9, 9, 9), ("0.3", "0.3"), ("0.3", "0.3")).check(1)
    mixture((9, 9, 9), ("0.3", "0.3"), ("0.3", "0.3")).check(2)
    with pytest.raises(UsageError, match="how long"):
        Loader(open_mixed("a", mix="b=0.25"), 8, seed=3)


def test_a_stack_reads_like_the_arrays_one_after_the_other():
    parts = [np.arange(6).reshape(3, 2), np.arange(6, 8).reshape(1, 2), np.arange(8, 12).reshape(2, 2)]
    stack, whole = Stack(parts), np.arange(12).reshape(6, 2)
    assert stack.shape == whole.shape and len(stack) == 6 and stack.nbytes == whole.nbytes
    for index in (slice(1, 5), [5, 0, 3, 3], 4, -1, slice(None, None, 2), []):
        assert np.array_equal(stack[index], whole[index])
    assert np.array_equal(np.asarray(stack), whole)
