from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.parts.selection import Pool
from osteon.selectors.near_duplicates import NearDuplicates, difference_hash, same_samples


def planted(unique: int = 6, copies: int = 4, size: int = 18) -> np.ndarray:
    """Every picture ``copies`` times in a row, each time a little brighter."""
    rng = np.random.default_rng(0)
    base = rng.integers(20, 200, (unique, 1, size, size))
    return np.concatenate([base[i:i + 1] + k for i in range(unique) for k in range(copies)]).astype(np.uint8)


def test_hash_is_the_comparison_of_neighbouring_areas() -> None:
    cells = np.random.default_rng(0).integers(0, 255, (8, 9))
    image = np.kron(cells, np.ones((9, 8))).astype(np.uint8)  # 72 x 72: 8 rows and 9 columns of flat areas
    wanted = [bool(cells[r, c + 1] > cells[r, c]) for r in range(8) for c in range(8)]
    assert difference_hash(image[None, None])[0].tolist() == wanted


@pytest.mark.parametrize("size", [8, 28, 32, 9])
def test_hash_of_ramps_and_of_nothing(size: int) -> None:
    ramp = np.broadcast_to(np.arange(size) * (250 // size), (1, 1, size, size)).astype(np.uint8)
    assert difference_hash(ramp).all() and not difference_hash(ramp[..., ::-1]).any()
    assert not difference_hash(ramp.transpose(0, 1, 3, 2)).any()  # rows differ, neighbours in a row do not
    for value in (0, 37, 255):
        assert not difference_hash(np.full((1, 1, size, size), value, np.uint8)).any()


def test_hash_ignores_brightness_and_contrast_and_weighs_colours() -> None:
    image = np.random.default_rng(0).integers(0, 100, (3, 3, 32, 32)).astype(np.uint8)
    assert np.array_equal(difference_hash(image), difference_hash(image * 2 + 5))
    green = np.zeros((1, 3, 32, 32), np.float32)
    green[:, 1] = np.arange(32)  # green rises, red falls by half as much: grey rises, since green weighs twice red
    green[:, 0] = -np.arange(32) * 1.5
    assert difference_hash(green).all()


def test_planted_repeats_leave_the_first_of_each() -> None:
    images = planted()
    chosen = NearDuplicates()(Pool(24, images=images), None)
    assert chosen.rows.tolist() == [0, 4, 8, 12, 16, 20]
    assert any("6 of 24 samples stay" in n for n in chosen.notes) and "source has none" in chosen.notes[0]


def test_groups_are_not_compared_unless_asked() -> None:
    images, groups = planted(), [f"g{i % 2}" for i in range(24)]
    pool = Pool(24, images=images, groups=groups)
    assert NearDuplicates()(pool, None).rows.tolist() == [i for k in range(6) for i in (4 * k, 4 * k + 1)]
    assert NearDuplicates(across_groups=True)(pool, None).rows.tolist() == [0, 4, 8, 12, 16, 20]
    assert not any("source has none" in n for n in NearDuplicates()(pool, None).notes)


def test_kept_are_farther_apart_than_six_bits_and_dropped_are_not() -> None:
    rng = np.random.default_rng(1)
    images = np.repeat(rng.integers(0, 255, (40, 1, 16, 16)), 2, 0).astype(np.int64)
    images = (images + rng.integers(-25, 26, images.shape)).clip(0, 255).astype(np.uint8)
    kept = NearDuplicates()(Pool(80, images=images), None).rows
    bits = difference_hash(images)
    away = (bits[:, None] != bits[None]).sum(2)
    assert 40 <= len(kept) < 80
    assert (away[np.ix_(kept, kept)] + 64 * np.eye(len(kept)) > 6).all()
    for i in set(range(80)) - set(kept.tolist()):
        assert (away[i, kept[kept < i]] <= 6).any()


def test_threshold_and_embeddings() -> None:
    x = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    pool = Pool(4, features=x)
    assert NearDuplicates(similarity="embedding").needs == ("features",) and NearDuplicates().needs == ("images",)
    assert NearDuplicates(similarity="embedding")(pool, None).rows.tolist() == [0, 2, 3]  # 1 - cosine 0.005
    assert NearDuplicates(similarity="embedding", threshold=0.001)(pool, None).rows.tolist() == [0, 1, 2, 3]
    assert NearDuplicates(similarity="embedding", threshold=1.5)(pool, None).rows.tolist() == [0, 3]
    images = planted()
    assert len(NearDuplicates(threshold=64)(Pool(24, images=images), None).rows) == 1


def test_a_number_finds_the_threshold() -> None:
    images = planted()
    pool = Pool(24, images=images)
    exact = NearDuplicates()(pool, 6)
    assert exact.rows.tolist() == [0, 4, 8, 12, 16, 20] and "within 0 of 64" in exact.notes[-1]
    for budget in range(1, 25):
        rows = NearDuplicates()(pool, budget).rows.tolist()
        assert len(set(rows)) == budget and rows == sorted(rows)
        if budget >= 6:
            assert {0, 4, 8, 12, 16, 20} <= set(rows)  # one of each before a repeat of any
    fan = Pool(4, features=np.array([[1, 0], [1, 0], [1, 0.3], [1, -0.3]], np.float32))
    assert NearDuplicates(similarity="embedding")(fan, 2).rows.tolist() == [0, 2]  # not the copy, which nothing keeps
    grouped = Pool(24, images=images, groups=[str(i) for i in range(24)])
    assert NearDuplicates()(grouped, 5).rows.tolist() == [0, 1, 2, 3, 4]  # nothing may be compared


def test_a_number_and_a_threshold_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="finds the threshold"):
        NearDuplicates(threshold=3)(Pool(24, images=planted()), 5)
    with pytest.raises(UsageError, match="no similarity 'ssim'"):
        NearDuplicates(similarity="ssim")
    with pytest.raises(UsageError, match="distance"):
        NearDuplicates(threshold=-1)


def test_other_samples_are_compared_by_features_or_in_every_value() -> None:
    chooser = NearDuplicates()
    assert chooser.needs == ("images",)
    chooser.settle("text")
    assert chooser.needs == ("features",) and chooser.similarity == "embedding"
    chooser.settle("image")
    assert chooser.similarity == "hash"
    with pytest.raises(UsageError, match="of pictures; these samples are sound"):
        NearDuplicates(similarity="hash").settle("sound")


def test_exact_copies_of_samples_of_any_shape() -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, 7)).astype(np.float32)
    x = np.concatenate([x, x[1:3], x[:1] + 1e-6])
    exact = NearDuplicates(similarity="exact")
    exact.settle("series")
    assert same_samples(x).tolist() == [0, 1, 2, 3, 4, 1, 2, 7]
    assert exact(Pool(8, images=x), None).rows.tolist() == [0, 1, 2, 3, 4, 7]
    assert exact(Pool(8, images=x), 7).rows.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert exact(Pool(8, images=x), 3).rows.tolist() == [0, 1, 2]
    groups = ["a"] * 5 + ["b"] * 3
    assert exact(Pool(8, images=x, groups=groups), None).rows.tolist() == list(range(8))
