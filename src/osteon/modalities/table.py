"""Rows of a table: what a column is, how its cells become numbers, and what costs little to know of rows.

A row is stored as (2, K) float32 for K columns. Channel 0 holds the value: of a number or a date the standardised one,
of a category the number of its level. Channel 1 is 1 where the cell was missing.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from osteon.modalities._base import Control
from osteon.parts.cells import by_names
from osteon.parts.random_feature_boosting import RandomFeatureBooster, fit_chosen
from osteon.parts.regression import scale_of
from osteon.parts.types import DataSpec

#: What several samples are called.
SAMPLES = "rows"
#: Cells that count as missing, in any case.
MISSING = frozenset(("", "na", "n/a", "#n/a", "#na", "<na>", "nan", "null", "none", "?"))
#: Levels of a category that are told apart, the most frequent ones.
LEVELS = 255
#: Whole numbers with at most so many distinct values are taken for categories.
FEW = 10
#: Kinds of columns, and the rule each is recognised by.
KINDS = {"numeric": f"all cells are numbers, more than {FEW} distinct ones or not whole",
         "date": "all cells are dates; days since 1970-01-01 as one number", "binary": "two levels",
         "categorical": f"everything else; the {LEVELS} most frequent levels and 'other'"}
#: How a row becomes an array; printed.
RULES = ("numbers and dates are standardised by their column's mean and deviation, missing ones are its median and "
         "marked; a category is the number of its level, a missing one a level of its own; missing are empty cells and "
         + ", ".join(sorted(MISSING - {""})))

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_CODE = re.compile(r"[+-]?0\d+")
_DATE = re.compile(r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?)?"
                   r"(?:Z|\+00:?00)?")
_DOTTED = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_EPOCH = datetime.date(1970, 1, 1).toordinal()
#: Larger numbers are refused: their squares would not be finite.
_LARGEST = 1e150


class Mixed(Exception):
    """A cell that does not fit the kind of its column; the arguments are the cell and the kind."""


def number(text: str) -> float | None:
    """The number a cell holds, in decimal notation; None when it holds none or one beyond 1e150."""
    if _NUMBER.fullmatch(text) is None:
        return None
    value = float(text)
    return value if abs(value) <= _LARGEST else None


def days(text: str) -> float | None:
    """Days since 1970-01-01 of ``2024-03-31``, ``2024/3/31`` or ``31.3.2024``, with the time of day (UTC) if stated."""
    match, dotted = _DATE.fullmatch(text), _DOTTED.fullmatch(text)
    try:
        if dotted is not None:
            return float(datetime.date(int(dotted[3]), int(dotted[2]), int(dotted[1])).toordinal() - _EPOCH)
        if match is None:
            return None
        whole = datetime.date(int(match[1]), int(match[3]), int(match[4])).toordinal() - _EPOCH
    except ValueError:  # no such day
        return None
    hour, minute, second = (float(part or 0) for part in match.groups()[4:7])
    if hour >= 24 or minute >= 60 or second >= 61:
        return None
    return whole + (hour * 3600 + minute * 60 + second) / 86400


def level(text: str) -> str:
    """The name of a category's level: whole numbers without a fraction, so that ``1.0`` and ``1`` are one."""
    value = None if _CODE.fullmatch(text) else number(text)
    return str(int(value)) if value is not None and value == int(value) and abs(value) < 2**53 else text


def is_missing(text: str, more: frozenset[str] = frozenset()) -> bool:
    """Whether a cell counts as missing; ``more`` are further texts that do, in lower case."""
    return text.lower() in MISSING or text.lower() in more


@dataclass(frozen=True)
class Column:
    """A column as the network knows it.

    Args:
        name: its name.
        kind: one of :data:`KINDS`.
        levels: of a category, the levels that are told apart, most frequent first.
        mean: of numbers and dates.
        sd: deviation of numbers and dates.
        median: of numbers and dates, standardised: what stands for a missing one.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0
    median: float = 0.0

    @property
    def continuous(self) -> bool:
        """Whether its values are numbers rather than levels."""
        return self.kind in ("numeric", "date")

    @property
    def count(self) -> int:
        """Level numbers in use, 0 for numbers: the levels, then 'other', then missing."""
        return 0 if self.continuous else len(self.levels) + 2

    @property
    def absent(self) -> float:
        """What channel 0 holds of a missing cell."""
        return self.median if self.continuous else float(self.count - 1)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.levels)}

    def encode(self, text: str, more: frozenset[str] = frozenset()) -> tuple[float, float] | None:
        """Value and mark of one cell; None when the cell is not of the column's kind."""
        if is_missing(text, more):
            return self.absent, 1.0
        if not self.continuous:
            return float(self._numbers.get(level(text), len(self.levels))), 0.0
        value = (number if self.kind == "numeric" else days)(text)
        scaled = math.nan if value is None else (value - self.mean) / self.sd
        return (scaled, 0.0) if abs(scaled) < 1e30 else None

    def trait(self) -> dict[str, Any]:
        """As JSON-ready values; :func:`columns_of` reads them. ``absent`` is there for views."""
        return {**asdict(self), "levels": list(self.levels), "absent": self.absent}


def columns_of(traits: Mapping[str, Any]) -> list[Column]:
    """The columns that ``spec.traits`` describe."""
    return [Column(one["name"], one["kind"], tuple(one["levels"]), one["mean"], one["sd"], one["median"])
            for one in traits["columns"]]


def guess_kind(counts: Mapping[str, int]) -> str:
    """Kind of a column from its cells that are not missing (text -> how often): one of :data:`KINDS` or ``"names"``.

    Numbers that start with a superfluous 0 are codes, hence categories. Texts of which every single one differs are
    names, of which nothing can be learned. Raises :class:`Mixed` where nine in ten distinct cells, and more than ten,
    are numbers (or dates) and the others are not.
    """
    found = {text: number(text) for text in counts}
    values = {value for value in found.values() if value is not None}
    if None not in found.values():
        if any(_CODE.fullmatch(text) for text in counts):
            return "categorical"
        return "numeric" if len(values) > FEW or any(v != int(v) for v in values) else "categorical"
    dated = {text: days(text) for text in counts}
    if None not in dated.values():
        return "date"
    for kind, parsed in (("numeric", found), ("date", dated)):
        fitting = sum(value is not None for value in parsed.values())
        if fitting > FEW and fitting >= 0.9 * len(parsed):
            raise Mixed(next(text for text, value in parsed.items() if value is None), kind)
    return "names" if len(counts) > 20 and max(counts.values()) == 1 else "categorical"


def fit_column(name: str, counts: Mapping[str, int], *, kind: str = "",
               more: frozenset[str] = frozenset()) -> Column | str:
    """A column from its cells (text -> how often), or the reason why nothing can be learned of it.

    Args:
        name: its name.
        counts: how often every text occurs.
        kind: one of :data:`KINDS`; by :func:`guess_kind` when empty.
        more: further texts that count as missing.

    Raises:
        Mixed: a cell does not fit the kind.
    """
    present = {text: n for text, n in counts.items() if n and not is_missing(text, more)}
    if not present:
        return "empty"
    full = len(present) == sum(1 for n in counts.values() if n)
    found = kind or guess_kind(present)
    if found == "names":
        return "every cell is different"
    if found in ("numeric", "date"):
        read = number if found == "numeric" else days
        parsed = {text: read(text) for text in present}
        for text, value in parsed.items():
            if value is None:
                raise Mixed(text, found)
        values = np.array(list(parsed.values()), np.float64)
        weights = np.array(list(present.values()), np.float64)
        mean = float(np.average(values, weights=weights))
        sd = math.sqrt(float(np.average((values - mean) ** 2, weights=weights)))
        if sd <= 1e-12 * abs(mean):
            if full:
                return "constant"
            sd = 1.0
        order = np.argsort(values)
        middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        return Column(name, found, mean=mean, sd=sd, median=(float(values[order][middle]) - mean) / sd)
    often: dict[str, int] = {}
    for text, n in present.items():
        often[level(text)] = often.get(level(text), 0) + n
    if len(often) == 1 and full:
        return "constant"
    names = sorted(often, key=lambda text: (-often[text], text))
    return Column(name, "binary" if len(names) == 2 else "categorical", tuple(names[:LEVELS]))


def raw_columns(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Standardised numbers with the mark of missing ones, and levels as 0 and 1: (N, C, K) -> (N, F) float32."""
    parts = []
    for j, column in enumerate(columns_of(spec.traits)):
        if column.continuous:
            parts.append(samples[:, :2, j].astype(np.float32))
        else:
            parts.append((samples[:, 0, j, None] == np.arange(column.count)).astype(np.float32))
    return np.concatenate(parts, 1)


def random_leaves(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """The leaf of every row in 64 trees with random splits, as 0 and 1 (Geurts et al. 2006, section 2.2)."""
    from sklearn.ensemble import RandomTreesEmbedding

    trees = RandomTreesEmbedding(64, max_depth=5, random_state=0, sparse_output=False)
    trees.fit(raw_columns(train, spec))
    return tuple(trees.transform(raw_columns(part, spec)).astype(np.float32)  # type: ignore[return-value]
                 for part in (train, test))


def _raw(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    return raw_columns(train, spec), raw_columns(test, spec)


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"raw columns": _raw, "random tree leaves": random_leaves}


def boosted_trees(train: np.ndarray, labels: np.ndarray, test: np.ndarray, spec: DataSpec, *, classes: int,
                  seed: int = 0) -> np.ndarray:
    """Probabilities by gradient-boosted trees, the usual choice: (N, 2, K), (N,), (M, 2, K) -> (M, classes).

    scikit-learn's histogram trees (after LightGBM, Ke et al. 2017) with its own defaults, except that a leaf holds at
    least a twentieth of the rows where those are fewer than 400. Missing cells and categories are passed as such.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    options = _tree_options(len(train), spec, seed)
    return _probabilities(lambda: HistGradientBoostingClassifier(**options), _for_trees(train, spec), labels,
                          _for_trees(test, spec), classes)


def _tree_options(rows: int, spec: DataSpec, seed: int) -> dict[str, Any]:
    return {"categorical_features": [not column.continuous for column in columns_of(spec.traits)],
            "min_samples_leaf": max(1, min(20, rows // 20)), "random_state": seed}


def _for_trees(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Rows as these trees take them: (N, 2, K) -> (N, K) float64, missing cells NaN."""
    known = [not column.continuous for column in columns_of(spec.traits)]
    values = samples[:, 0].astype(np.float64)
    values[:, known] = np.minimum(values[:, known], 254)  # the most categories these trees take
    return np.where(samples[:, 1] > 0.5, np.nan, values)


def boosted_trees_of_numbers(train: np.ndarray, targets: np.ndarray, test: np.ndarray, spec: DataSpec, *,
                             seed: int = 0) -> np.ndarray:
    """Numbers by gradient-boosted trees with the options of `boosted_trees`: (N, 2, K), (N,), (M, 2, K) -> (M,)."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(**_tree_options(len(train), spec, seed))
    return np.asarray(model.fit(_for_trees(train, spec), targets).predict(_for_trees(test, spec)))


def ridge_regression(train: np.ndarray, targets: np.ndarray, test: np.ndarray, spec: DataSpec, *,
                     seed: int = 0) -> np.ndarray:
    """Numbers by scikit-learn's ridge regression on :func:`raw_columns`; shapes as in `boosted_trees_of_numbers`.

    The penalty is the one of least leave-one-out error on the training rows.
    """
    from sklearn.linear_model import RidgeCV

    if len(train) < 2:
        return np.full(len(test), float(targets.mean()))
    model = RidgeCV(np.logspace(-3, 5, 33))
    return np.asarray(model.fit(raw_columns(train, spec), targets).predict(raw_columns(test, spec)))


def logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray, spec: DataSpec, *, classes: int,
                        seed: int = 0) -> np.ndarray:
    """Probabilities by scikit-learn's logistic regression on :func:`raw_columns`; shapes as in `boosted_trees`."""
    from sklearn.linear_model import LogisticRegression

    return _probabilities(lambda: LogisticRegression(max_iter=5000), raw_columns(train, spec), labels,
                          raw_columns(test, spec), classes)


def boosted_features(train: np.ndarray, labels: np.ndarray, test: np.ndarray, spec: DataSpec, *, classes: int,
                     seed: int = 0) -> np.ndarray:
    """Probabilities by boosted random features (RFRBoost) on :func:`raw_columns`; shapes as in `boosted_trees`.

    5 layers of 128 + 128 features; the penalty is chosen on a fifth of the labelled rows.
    """
    out, present = np.zeros((len(test), classes), np.float64), np.unique(labels)
    if len(present) == 1:  # nothing to tell apart
        out[:, int(present[0])] = 1.0
        return out
    model = fit_chosen(lambda ridge: RandomFeatureBooster(width=128, ridge=ridge, seed=seed), raw_columns(train, spec),
                       np.searchsorted(present, labels), seed=seed)
    out[:, present.astype(int)] = model.predict(raw_columns(test, spec))
    return out


def boosted_features_of_numbers(train: np.ndarray, targets: np.ndarray, test: np.ndarray, spec: DataSpec, *,
                                seed: int = 0) -> np.ndarray:
    """Numbers by boosted random features with the options of `boosted_features`; shapes as in `boosted_trees`."""
    mean, scale = scale_of(targets)
    if len(train) < 2 or not np.ptp(targets) > 0:
        return np.full(len(test), mean)
    model = fit_chosen(lambda ridge: RandomFeatureBooster(loss="mse", width=128, ridge=ridge, seed=seed),
                       raw_columns(train, spec), (targets - mean) / scale, seed=seed)
    return np.asarray(mean + scale * model.predict(raw_columns(test, spec))[:, 0])


def _probabilities(make: Callable[[], Any], x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities (M, classes) of a fresh classifier; classes that do not occur in ``y`` get 0."""
    out = np.zeros((len(test), classes), np.float64)
    present = np.unique(y)
    if len(present) == 1:  # nothing to tell apart
        out[:, int(present[0])] = 1.0
        return out
    model = make().fit(x, y)
    out[:, model.classes_.astype(int)] = model.predict_proba(test)
    return out


#: The same for numbers: ``(train, targets, test, spec, *, seed) -> (M,)``.
NUMBER_CONTROLS: dict[str, Callable[..., np.ndarray]] = {"gradient-boosted trees": boosted_trees_of_numbers,
                                                         "ridge regression": ridge_regression,
                                                         "boosted random features": boosted_features_of_numbers}
#: Classifiers that read labels and train quickly: ``(train, labels, test, spec, *, classes, seed) -> (M, classes)``.
LABELLED_CONTROLS: dict[str, Callable[..., np.ndarray]] = {"gradient-boosted trees": boosted_trees,
                                                           "logistic regression": logistic_regression,
                                                           "boosted random features": boosted_features}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """How many levels every column has, 0 for numbers: what a stem of columns needs to know.

    Of rows read by names: which tokens, and what TransTab and UniTabE have beside theirs: a class token, no positions,
    and the former the gated MLPs.
    """
    way = spec.traits.get("names")
    if way:
        paper = {} if way == "cells" else {"pool": "cls", "positions": "none", **({"gated": True} if way == "pieces"
                                                                                  else {})}
        return {"stem": "names", "stem_options": {"tokens": way}, **paper}
    return {"levels": [column.count for column in columns_of(spec.traits)]}


@lru_cache(maxsize=4)
def _palette(name: str, steps: int) -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps[name](np.arange(steps) / max(1, steps - 1))[:, :3] * 255).round().astype(np.uint8)


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Rows as coloured cells, 32 in a line: (B, 2, K) -> (B, h, w, 3) uint8.

    Numbers run from blue over white to red (-2.5 to 2.5 deviations of the column), every level has a colour, what is
    missing is grey.
    """
    named, count = by_names(spec), values.shape[2]
    kinds = values[:, 2].round() == 0 if named else np.array([[c.continuous for c in columns_of(spec.traits)]])
    wide = min(32, count)
    lines = -(-count // wide)
    cells = np.full((len(values), lines * wide, 3), 255, np.uint8)
    for j in range(count):
        value, which = np.nan_to_num(values[:, 0, j]), np.nan_to_num(values[:, 3 if named else 0, j])
        numbers = _palette("coolwarm", 256)[np.rint((value.clip(-2.5, 2.5) / 5 + 0.5) * 255).astype(int)]
        levels = _palette("tab20", 20)[np.rint(which).astype(int) % 20]
        colours = np.where(kinds[:, j, None], numbers, levels)
        cells[:, j] = np.where(values[:, 1, j, None] > 0.5, np.uint8(128), colours)
    drawn = cells.reshape(len(values), lines, wide, 3)
    return np.ascontiguousarray(drawn.repeat(12, 1).repeat(8, 2))
