"""The verdict on planted data, one case of each kind; ``python -m benchmarks.planted`` does twenty."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import planted


@pytest.mark.slow
@pytest.mark.parametrize("kind", planted.KINDS)
def test_the_verdict_is_right_where_the_truth_is_known(kind):
    assert planted.verdict(kind, 0) == kind


def test_planted_labels_lie_in_the_structure_or_in_a_corner_and_nowhere_else(tmp_path):
    for kind, name, sizes in (("pays", "train", 400), ("does not pay", "train", 1500), ("cannot tell", "test", 6)):
        planted.planted(kind, 3, tmp_path)
        with np.load(tmp_path / f"{name}.npz") as stored:
            images, label = stored["image"][..., 0].astype(float), stored["label"]
        assert len(images) == sizes and len(set(label)) <= (2 if kind == "does not pay" else 4)
        corner = np.corrcoef(images[:, 0, 0], label)[0, 1]
        if kind == "does not pay":
            assert corner > 0.999
            assert abs(np.corrcoef(images[:, 1:, 1:].std((1, 2)), label)[0, 1]) < 0.1
        elif kind == "pays":
            assert abs(corner) < 0.15
    with np.load(tmp_path / "source.npz") as stored:
        assert stored.files == ["image"]


def test_the_error_rate_comes_with_what_it_may_be_at_most():
    assert planted.upper(0, 20) == pytest.approx(0.1611, abs=1e-3)  # Wilson: z^2 / (n + z^2)
    assert planted.upper(20, 20) == pytest.approx(1.0)
    assert planted.upper(10, 20) == pytest.approx(0.7007, abs=1e-3)
