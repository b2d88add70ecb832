from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OSTEON_CACHE", str(folder))
    return folder


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a picture of one value under a name below ``tmp_path``; returns its path."""

    def one(name: str, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size[1], size[0]), value, np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return one
