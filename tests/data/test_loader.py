from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from osteon.core.errors import UsageError
from osteon.data import Dataset, Loader


def dataset(n: int = 10, dtype: str = "uint8", labels: bool = True) -> Dataset:
    images = np.arange(n, dtype=dtype).reshape(n, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    return Dataset.from_arrays(images, np.arange(n) % 2 if labels else None)


def test_an_epoch_has_every_image_once_and_drops_the_rest():
    loader = Loader(dataset(10), 3, seed=0)
    assert loader.steps_per_epoch == 3
    seen = np.concatenate([loader.rows(step) for step in range(3)])
    assert len(set(seen)) == 9 and set(seen) <= set(range(10))


def test_epochs_and_seeds_differ_and_steps_repeat():
    loader, other = Loader(dataset(100), 10, seed=0), Loader(dataset(100), 10, seed=1)
    assert loader.rows(0).tolist() != loader.rows(10).tolist()
    assert loader.rows(0).tolist() != other.rows(0).tolist()
    late = loader.rows(25).tolist()
    assert Loader(dataset(100), 10, seed=0).rows(25).tolist() == late
    # The documented order: what a person can recompute
    assert late == np.random.default_rng([0, 2]).permutation(100)[50:60].tolist()


def test_a_batch_holds_the_images_it_names():
    batch = Loader(dataset(10), 4, seed=5).at(1)
    assert batch["index"].dtype == torch.int64 and batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
    assert batch["label"].tolist() == (batch["index"] % 2).tolist()
    assert "label" not in Loader(dataset(10, labels=False), 4, seed=5).at(0)


def test_ranks_share_the_global_batch():
    whole = Loader(dataset(20), 6, seed=2)
    ranks = [Loader(dataset(20), 6, seed=2, rank=r, world=3) for r in range(3)]
    for step in (0, 2, 7):
        joined = torch.cat([loader.at(step)["index"] for loader in ranks])
        assert joined.tolist() == whole.rows(step).tolist() == ranks[1].rows(step).tolist()
    assert ranks[1].share == slice(2, 4)


@pytest.mark.parametrize(("batch", "rank", "world", "words"), [
    (11, 0, 1, "larger than the 10"), (0, 0, 1, "not possible"), (5, 0, 2, "multiple of 2"), (4, 2, 2, "Rank 2")])
def test_refusals(batch, rank, world, words):
    with pytest.raises(UsageError, match=words):
        Loader(dataset(10), batch, 0, rank, world)


def test_repeats_hold_every_image_so_many_times_on_different_ranks():
    once, thrice = Loader(dataset(20), 6, seed=2), Loader(dataset(20), 6, seed=2, repeats=3)
    first, second = thrice.rows(0), thrice.rows(1)
    assert first.tolist() == [*once.rows(0)[:2]] * 3 and second.tolist() == [*once.rows(0)[2:4]] * 3
    assert thrice.steps_per_epoch == once.steps_per_epoch == 3  # as many samples, a third of the images
    shares = [Loader(dataset(20), 6, seed=2, rank=r, world=3, repeats=3).at(0)["index"].tolist() for r in range(3)]
    assert shares == [first[:2].tolist()] * 3
    with pytest.raises(UsageError, match="cannot hold every image 4 times"):
        Loader(dataset(10), 6, 0, repeats=4)


def test_iterate_equals_at():
    loader = Loader(dataset(10), 3, seed=0)
    got = [batch["index"].tolist() for batch in loader.iterate(2, 9)]
    assert got == [loader.at(step)["index"].tolist() for step in range(2, 9)]
    assert list(loader.iterate(3, 3)) == []


def threads() -> int:
    return sum(thread.name == "osteon-loader" for thread in threading.enumerate())


def test_the_thread_ends_with_its_consumer_and_reads_no_further_ahead_than_it_must():
    loader = Loader(dataset(10), 1, seed=0)
    made = []
    at = loader.at
    loader.at = lambda step: made.append(step) or at(step)  # type: ignore[method-assign, assignment, func-returns-value]
    stream = loader.iterate(0, 100_000)
    next(stream)
    time.sleep(0.2)
    assert len(made) <= 6 and threads() == 1
    stream.close()
    assert threads() == 0


def test_an_error_in_the_thread_reaches_the_consumer():
    loader = Loader(dataset(10), 5, seed=0)
    at = loader.at

    def broken(step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise OSError("disk gone")
        return at(step)

    loader.at = broken  # type: ignore[method-assign]
    stream = loader.iterate(0, 5)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(OSError, match="disk gone"):
        next(stream)
    assert threads() == 0


def test_16_bit_comes_as_float_with_the_same_values():
    images = np.array([0, 300, 65535], np.uint16).reshape(3, 1, 1, 1)
    data = Dataset.from_arrays(images)
    assert data.spec.scale == 65535
    out = data.batch([2, 1])["image"]
    assert out.dtype == torch.float32 and out.ravel().tolist() == [65535, 300]
