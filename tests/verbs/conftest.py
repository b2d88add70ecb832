from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osteon.data import Dataset, open_source
from osteon.verbs.pretrain import pretrain

Archive = Callable[..., Path]

#: a run of a few quick steps on digits
QUICK: dict[str, Any] = {"objective": "simclr", "backbone": "resnet_tiny", "steps": 4, "batch_size": 16,
                         "progress": False, "report": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return open_source("digits")


@pytest.fixture
def archive(tmp_path: Path, digits: Dataset) -> Archive:
    """Save digits ``start`` to ``stop`` (images may be changed by ``change``) as an .npz; returns its path."""

    def save(name: str, start: int, stop: int, *, labels: bool = True, change: Callable[..., Any] | None = None,
             **more: Any) -> Path:
        images = np.array(digits.images[start:stop]).transpose(0, 2, 3, 1)
        assert digits.labels is not None
        parts = {"image": images if change is None else change(images), **more}
        if labels and "label" not in more:
            parts["label"] = digits.labels[start:stop]
        np.savez(tmp_path / name, **parts)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the training half of the digits, with its report."""
    return pretrain("digits:train", out=tmp_path_factory.mktemp("runs") / "simclr", **{**QUICK, "report": True})
