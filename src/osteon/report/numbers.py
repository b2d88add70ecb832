"""Numbers as people read them: one way of writing a score, an interval, a count and a time, used all over the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Metrics that are fractions in [0, 1] and are printed in percent.
FRACTIONS = frozenset({"accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "f1", "auroc", "auprc", "top1", "top5",
                       "precision", "recall", "map", "knn", "exact_match", "label_ranking_average_precision",
                       "average_precision", "mean_average_precision"})
#: What stands where there is no number.
NONE = "n/a"


def is_fraction(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is therefore printed in percent."""
    return metric.lower().replace("-", "_").replace(" ", "_") in FRACTIONS


def is_error(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric == "MSE"


def known(value: object) -> bool:
    """Whether a value is a finite number (booleans are not numbers here)."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent: ``0.912`` -> ``"91.2 %"``; ``"n/a"`` when missing or not finite."""
    return f"{100 * float(value):.{digits}f} %" if value is not None and known(value) else NONE


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two fractions in percentage points, with its sign: ``0.032`` -> ``"+3.2 points"``."""
    return f"{100 * float(value):+.{digits}f} points" if value is not None and known(value) else NONE


def signed(value: float | None, digits: int = 3) -> str:
    """A difference of two plain numbers with its sign: ``0.0321`` -> ``"+0.032"``."""
    return f"{float(value):+.{digits}f}" if value is not None and known(value) else NONE


def number(value: float | int | None, digits: int = 4) -> str:
    """A plain number with about ``digits`` significant figures and thousands separated: ``12345.6`` -> ``"12,346"``."""
    if value is None or not known(value):
        return NONE
    v = float(value)
    if v == 0:
        return "0"
    size = math.floor(math.log10(abs(v)))
    if size >= 12:
        return f"{v:.{digits - 2}e}"
    if v == int(v):
        return f"{int(v):,}"
    if size >= digits - 1:
        return f"{v:,.0f}"
    if size < -4:
        return f"{v:.{digits - 2}e}"
    return f"{v:.{digits - 1 - size}f}".rstrip("0").rstrip(".")


def score(value: float | None, *, in_percent: bool = True) -> str:
    """A score without its interval: percent for fractions, a plain number otherwise."""
    return percent(value) if in_percent else number(value)


def bounds(low: float | None, high: float | None, *, in_percent: bool = True) -> str:
    """An interval alone: ``"[90.1, 92.3]"`` (percent without the sign), or an empty string when there is none."""
    if low is None or high is None or not (known(low) and known(high)):
        return ""
    if in_percent:
        return f"[{100 * float(low):.1f}, {100 * float(high):.1f}]"
    return f"[{number(low)}, {number(high)}]"


def interval(mean: float | None, low: float | None, high: float | None, *, in_percent: bool = True) -> str:
    """A score with its interval: ``"91.2 % [90.1, 92.3]"``."""
    return f"{score(mean, in_percent=in_percent)} {bounds(low, high, in_percent=in_percent)}".rstrip()


def seconds(value: float | None) -> str:
    """A time: ``"0.42 s"``, ``"45 s"``, ``"3 min 20 s"``, ``"1 h 05 min"``."""
    if value is None or not known(value) or float(value) < 0:
        return NONE
    v = float(value)
    if v < 9.95:
        return f"{number(v, 2)} s"
    whole = round(v)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(v / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """A number of bytes: ``1536`` -> ``"1.5 KiB"``."""
    if count is None or not known(count):
        return NONE
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def leader(means: Sequence[float | None], *, lowest: bool = False) -> int | None:
    """Index of the highest known mean, or of the lowest (the first of equals), or None when there is none."""
    sign = -1.0 if lowest else 1.0
    best: int | None = None
    for i, mean in enumerate(means):
        if mean is not None and known(mean) and (best is None or sign * float(mean) > sign * float(means[best] or 0.0)):
            best = i
    return best


def tied(best_low: float | None, best_high: float | None, low: float | None, high: float | None) -> bool:
    """Whether two scores are a tie: their intervals overlap or touch, or one of them has no interval to tell by."""
    if best_low is None or best_high is None or low is None or high is None:
        return True
    if not all(known(v) for v in (best_low, best_high, low, high)):
        return True
    return float(high) >= float(best_low) and float(low) <= float(best_high)


def words(name: object) -> str:
    """A key as a person reads it: ``"best_control"`` -> ``"Best control"``."""
    if str(name) in _KNOWN_AS:
        return _KNOWN_AS[str(name)]
    text = str(name).replace("_", " ").strip()
    return text[:1].upper() + text[1:]


#: Names that are not written as their keys are.
_KNOWN_AS = {"knn": "k-NN", "ncm": "Nearest class mean", "linear": "Linear probe", "auroc": "AUROC",
             "macro_f1": "Macro-F1", "fine_tune": "Fine-tuning", "scratch": "Trained from scratch",
             "mae": "MAE", "rmse": "RMSE"}


def plain(value: object) -> str:
    """Any configuration value in one line: numbers grouped, lists joined, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(plain(v) for v in value) or "–"
    return str(value)
