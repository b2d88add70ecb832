"""Features too large for memory lie in a file, and every evaluator scores them as it scores those in memory."""

import numpy as np
import pytest

from osteon.backbones import build_backbone
from osteon.data import Dataset, open_source
from osteon.verbs import _model
from osteon.verbs._arms import feature_arms, make_task


def test_large_features_lie_in_a_nameless_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path))
    data = open_source("digits:train", cache=False, limit=50)
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=1)
    here = _model.extract(network, data, data.spec, batch_size=16)
    monkeypatch.setattr(_model, "MAPPED", 50 * 16 * 4 - 1)
    there = _model.extract(network, data, data.spec, batch_size=16)
    assert not isinstance(here, np.memmap) and isinstance(there, np.memmap) and np.array_equal(here, there)
    assert not any(tmp_path.iterdir())  # nothing is left behind, whatever happens


def test_without_place_on_the_disk_they_lie_in_memory_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_model, "MAPPED", 100)
    assert isinstance(_model.room_for(10, 4), np.memmap)
    monkeypatch.setattr(_model.os, "posix_fallocate", full, raising=False)
    room = _model.room_for(10, 4)
    assert not isinstance(room, np.memmap) and room.shape == (10, 4)


def test_arms_of_mapped_features_are_those_of_features_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(120) % 3)
    x = (rng.normal(size=(3, 8))[y] + rng.normal(size=(120, 8))).astype(np.float32)
    train, test = (Dataset.from_arrays(np.zeros((len(part), 1, 2, 2), dtype=np.uint8), part)
                   for part in (y[:80], y[80:]))
    task = make_task(train, test, [20, "all"], 2)
    np.save(tmp_path / "x.npy", x)
    there = np.load(tmp_path / "x.npy", mmap_mode="r")
    names = ("knn", "linear_probe")
    here, mapped = (feature_arms("a", "control", [(f[:80], f[80:])], task, names) for f in (x, there))
    for a, b in zip(here, mapped, strict=True):
        assert (a.evaluator, a.budget) == (b.evaluator, b.budget) and np.allclose(a.quality, b.quality)
        assert a.scores.keys() == b.scores.keys()
        assert all(np.allclose(a.scores[key], b.scores[key], atol=1e-5) for key in a.scores)
