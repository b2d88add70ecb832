from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset


def make(labels=None, n: int = 6, **options) -> Dataset:
    images = np.arange(n * 3 * 4, dtype=np.uint8).reshape(n, 3, 2, 2)
    return Dataset.from_arrays(images, labels, **options)


def test_spec_is_measured():
    data = make(np.array([0, 0, 0, 1, 1, 0]))
    np.testing.assert_allclose(data.spec.mean, data.images.mean((0, 2, 3)) / 255)
    np.testing.assert_allclose(data.spec.std, data.images.std((0, 2, 3)) / 255)
    assert (data.spec.channels, data.spec.size, data.spec.num_classes) == (3, 2, 2)
    assert data.spec.class_weights == pytest.approx((2 / 3, 4 / 3))
    assert not data.spec.multi_label and make(np.ones((6, 2), int)).spec.multi_label
    assert make().spec.num_classes == 0 and make().spec.class_weights == ()


def test_a_constant_channel_does_not_divide_by_zero():
    data = Dataset.from_arrays(np.full((3, 1, 2, 2), 7, np.uint8))
    assert data.spec.std == (1.0,) and "constant" in data.notes[0]


def test_subset_keeps_statistics_and_order_and_counts_classes_anew():
    data = make(np.array([0, 0, 0, 1, 1, 0]))
    part = data.subset([4, 0, 1])
    assert part.ids == [data.ids[4], data.ids[0], data.ids[1]] and part.labels.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(part.images, data.images[[4, 0, 1]])
    assert part.spec.mean == data.spec.mean
    assert data.subset([3, 4, 0]).spec.class_weights == pytest.approx((4 / 3, 2 / 3))
    assert part.fingerprint not in (data.fingerprint, data.subset([0, 1, 4]).fingerprint)
    assert np.shares_memory(data.subset([1, 2, 3]).images, data.images)
    np.testing.assert_array_equal(data.subset([1, 2, 3]).images, data.images[1:4])
    assert len(data.subset([])) == 0
    with pytest.raises(UsageError, match=r"0\.\.5"):
        data.subset([6])


def test_fingerprint_sees_pixels_and_labels():
    data = make(np.zeros(6, int))
    assert data.fingerprint == make(np.zeros(6, int)).fingerprint
    assert data.fingerprint != make(np.array([0, 0, 0, 0, 0, 1])).fingerprint
    assert data.fingerprint != make(n=5, labels=np.zeros(5, int)).fingerprint


def test_classes_are_matched_by_name():
    test = make(np.array([0, 1, 1, 0, 1, 1]), class_names=["cat", "dog"])
    matched = test.with_classes(["ant", "cat", "cow", "dog"])
    assert matched.labels.tolist() == [1, 3, 3, 1, 3, 3] and matched.spec.num_classes == 4
    with pytest.raises(DataError, match="'dog'"):
        test.with_classes(["cat", "cow"])
    several = make(np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 0], [0, 0]]), class_names=["cat", "dog"])
    assert several.with_classes(["dog", "ant", "cat"]).labels[:3].tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(("shape", "labels"), [((2, 1, 2, 3), None), ((2, 2, 2), None), ((0, 1, 2, 2), None),
                                               ((2, 1, 2, 2), np.zeros(3))])
def test_refusals(shape, labels):
    with pytest.raises(UsageError):
        Dataset.from_arrays(np.zeros(shape, np.uint8), labels)
