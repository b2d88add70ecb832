"""Features in a file are scored like those in memory, and are not read all at once."""

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.evaluators.knn import KNN
from osteon.evaluators.linear_probe import LinearProbe
from osteon.evaluators.ncm import NCM
from osteon.parts.rows import Rows


def task(tmp_path, broken: bool = False):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 9000)
    x = (rng.normal(size=(4, 70))[y] + 2 * rng.normal(size=(9000, 70)) + 1).astype(np.float32)
    if broken:
        x[8500, 3] = np.inf
    np.save(tmp_path / "x.npy", x)
    return x, y, np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("judge", [KNN(), LinearProbe(solver="ridge"), NCM()])
def test_same_scores(judge, tmp_path) -> None:  # type: ignore[no-untyped-def]
    x, y, there = task(tmp_path)
    held, rest = np.arange(0, 9000, 9), np.setdiff1d(np.arange(9000), np.arange(0, 9000, 9))
    wanted = judge(x[rest], y[rest], np.concatenate([x[held], x[:50]]), classes=4)
    asked = Rows(there, held).followed_by(Rows(there[:50]))
    assert np.allclose(judge(Rows(there, rest), y[rest], asked, classes=4), wanted, atol=1e-5)


@pytest.mark.parametrize("judge", [KNN(), LinearProbe(solver="ridge")])
def test_read_a_block_at_a_time(judge, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    _, y, there = task(tmp_path)
    most = []
    plain = Rows._read
    monkeypatch.setattr(Rows, "_read", lambda self, part, at: (most.append(len(at)), plain(self, part, at))[1])
    judge(there, y, there[:20], classes=4)
    assert max(most) <= 8192 < len(there)  # of more rows no more are read at once


def test_what_is_no_number_is_named_by_its_row(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x, y, there = task(tmp_path, broken=True)
    for features in (x, there):
        with pytest.raises(DataError, match="row 8500"):
            LinearProbe()(features, y, x[:5], classes=4)
