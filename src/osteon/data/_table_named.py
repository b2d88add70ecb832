"""Tables that need no file: a generated one and scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from osteon.data._table_files import Table
from osteon.data._table_roles import listed
from osteon.data.listing import Listing
from osteon.data.splits import train_validation_split


def list_mixed(split: str | None) -> Listing:
    """2,000 generated rows of 14 columns and four classes: numbers, categories, a yes or no, a date, missing cells.

    Every class is two far clusters of a hidden space of three dimensions; each column is a noisy reading of one or two
    of these. ``train`` (1,400) and ``test`` (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 2000
    cluster = np.arange(count) % 8
    corners = np.array([[int(b) for b in f"{c:03b}"] for c in range(8)]) * 2.0 - 1
    hidden = corners[cluster] + 0.45 * rng.standard_normal((count, 3))
    labels = np.array([0, 1, 2, 3, 3, 2, 1, 0])[cluster]
    mixing = rng.standard_normal((3, 8))
    numbers = hidden @ mixing + 0.8 * rng.standard_normal((count, 8))
    numbers[:, 6:] = np.exp(numbers[:, 6:])  # skewed, as incomes are
    columns: dict[str, list[str]] = {f"number {j + 1}": [f"{v:.4g}" for v in numbers[:, j]] for j in range(8)}
    for j, names in enumerate((("red", "green", "blue"), ("north", "east", "south", "west"),
                               ("oak", "ash", "elm", "fir", "yew"))):
        logits = 1.2 * hidden @ rng.standard_normal((3, len(names)))
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        columns[("colour", "place", "tree")[j]] = [names[k] for k in drawn]
    columns["member"] = ["yes" if v > 0 else "no" for v in hidden[:, 0] + rng.standard_normal(count)]
    day = np.datetime64("2020-01-01") + (400 + 150 * hidden[:, 1] + 60 * rng.standard_normal(count)).astype(int)
    columns["since"] = [str(d) for d in day]
    columns["noise"] = [f"{v:.4g}" for v in rng.standard_normal(count)]
    for name in ("number 1", "number 5", "tree", "since"):
        for i in np.flatnonzero(rng.random(count) < 0.1):
            columns[name][i] = ""
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    return _embedded("mixed", columns, [f"class {c}" for c in labels], [str(p) for p in parts], split)


def _sklearn(name: str) -> Callable[[str | None], Listing]:
    def lister(split: str | None) -> Listing:
        """A table of scikit-learn; a fixed stratified 70/30 split (seed 0) with equal rows on one side."""
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")()
        rows = [[repr(float(v)) for v in row] for row in data.data]
        train, test = train_validation_split(data.target, 0.3, seed=0, groups=["|".join(row) for row in rows])
        parts = np.empty(len(rows), object)
        parts[train], parts[test] = "train", "test"
        columns = {str(n): list(cells) for n, cells in zip(data.feature_names, zip(*rows, strict=True), strict=True)}
        return _embedded(name, columns, [str(data.target_names[k]) for k in data.target], list(parts), split)

    return lister


def list_diabetes(split: str | None) -> Listing:
    """scikit-learn's diabetes table: 442 patients, ten measurements, and how far the disease went in a year (a number).

    ``train`` (309) and ``test`` (133) are a fixed random split (seed 0).
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    train, test = train_validation_split(np.zeros(len(data.target), np.int64), 0.3, seed=0)
    parts = np.empty(len(data.target), object)
    parts[train], parts[test] = "train", "test"
    columns = {str(n): [repr(float(v)) for v in cells]
               for n, cells in zip(data.feature_names, data.data.T, strict=True)}
    return _embedded("diabetes", columns, [repr(float(v)) for v in data.target], list(parts), split, task="regression")


def _embedded(name: str, columns: Mapping[str, Sequence[str]], labels: Sequence[str], parts: Sequence[str],
              split: str | None, *, task: str = "") -> Listing:
    named = {**columns, "label": labels, "split": parts, "id": [f"{name}-{i:04d}" for i in range(len(labels))]}
    table = Table.of(list(named), zip(*named.values(), strict=True), range(1, len(labels) + 1), name)
    listing = listed(table, name, f"{name}-1", {}, None, cached=False, task=task)
    return listing.only(split) if split else listing


#: Name -> ``list(split)``.
NAMED = {"mixed": list_mixed, "breast_cancer": _sklearn("breast_cancer"), "wine": _sklearn("wine"),
         "iris": _sklearn("iris"), "diabetes": list_diabetes}
