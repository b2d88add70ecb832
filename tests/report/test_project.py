"""Projection: what PCA must satisfy, by comparison with a plain singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.report.project import project_2d


@pytest.mark.parametrize("shape", [(40, 5), (6, 50), (3, 3)])
def test_pca_equals_the_singular_value_decomposition_up_to_sign(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(project_2d(x)), np.abs(left[:, :2] * values[:2]), rtol=1e-4, atol=1e-4)


def test_points_on_a_line_are_placed_on_the_first_axis_in_order():
    x = np.outer(np.arange(5.0), [3.0, 4.0])
    xy = project_2d(x)
    np.testing.assert_allclose(xy[:, 0], [-10, -5, 0, 5, 10], atol=1e-5)
    np.testing.assert_allclose(xy[:, 1], 0, atol=1e-5)


def test_each_axis_is_turned_so_that_its_largest_loading_is_positive():
    rng = np.random.default_rng(4)
    for direction in rng.normal(size=(12, 5)):
        rising = direction * np.sign(direction[np.abs(direction).argmax()])
        for rows in (3, 20):  # through either Gram matrix
            assert (np.diff(project_2d(np.outer(np.arange(rows), rising))[:, 0]) > 0).all()


def test_the_sign_does_not_depend_on_the_order_of_the_samples():
    x = np.random.default_rng(1).normal(size=(30, 4))
    np.testing.assert_allclose(project_2d(x)[::-1], project_2d(x[::-1]), atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 1), (2, 0)])
def test_degenerate_shapes_and_constant_features(shape):
    xy = project_2d(np.ones(shape))
    assert xy.shape == (shape[0], 2) and xy.dtype == np.float32 and (xy == 0).all()


def test_tsne_keeps_two_far_clusters_apart_and_repeats():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(0, 1, (25, 6)), rng.normal(50, 1, (25, 6))])
    a, b = project_2d(x, 3, "tsne"), project_2d(x, 3, "tsne")
    np.testing.assert_array_equal(a, b)
    gap = np.linalg.norm(a[:25].mean(0) - a[25:].mean(0))
    assert gap > 2 * a[:25].std(0).max()


def test_refusals():
    with pytest.raises(UsageError, match="NaN"):
        project_2d(np.array([[np.nan, 1.0]]))
    with pytest.raises(UsageError, match="shape"):
        project_2d(np.zeros(3))
    with pytest.raises(UsageError, match="at most 2000"):
        project_2d(np.zeros((2001, 2)), method="tsne")
    with pytest.raises(UsageError, match="umap"):
        project_2d(np.zeros((3, 2)), method="umap")
