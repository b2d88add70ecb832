"""The two figures that are not line charts: the interval rows of a leaderboard and the map of the features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from osteon.core.errors import UsageError
from osteon.report.numbers import interval, known, number, percent
from osteon.report.svg import COLOURS, Arm, compact, element, nice_ticks

#: Points drawn on a map at most; more would only make the file heavy.
MAP_POINTS = 3000


class Scale:
    """The common horizontal scale of a leaderboard, in percent of the width so that rows stretch with the screen."""

    def __init__(self, arms: Sequence[Arm], in_percent: bool) -> None:
        values = [float(v) for a in arms for v in (a.mean, a.low, a.high) if v is not None and known(v)]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
        self.low, self.high, self.in_percent = low - margin, high + margin, in_percent
        self.ticks = nice_ticks(self.low, self.high, 5)

    def at(self, value: float) -> str:
        """Position of a value as an SVG percentage."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def label(self, value: float) -> str:
        """Tick label of a value."""
        return percent(value, 0 if self.high - self.low > 0.04 else 1) if self.in_percent else compact(value)


def board_row(arm: Arm, scale: Scale, best: Arm | None) -> Markup:
    """One row of a leaderboard: the mean as a dot, its interval as a bar, the leader's interval shaded behind.

    A bar that reaches into the shade is a tie. Dots of controls are hollow and grey.
    """
    parts = [element("line", {"x1": scale.at(t), "x2": scale.at(t), "y1": 0, "y2": "100%", "class": "grid"})
             for t in scale.ticks]
    if best is not None and best.low is not None and best.high is not None and known(best.low) and known(best.high):
        width = 100 * (float(best.high) - float(best.low)) / (scale.high - scale.low)
        parts.insert(0, element("rect", {"x": scale.at(best.low), "width": f"{max(0.0, width):.2f}%", "y": 0,
                                         "height": "100%", "class": "shade"}))
    colour, dot = ("ck", "hollow") if arm.kind == "control" else ("c0", "dot")
    if arm.low is not None and arm.high is not None and known(arm.low) and known(arm.high):
        parts.append(element("line", {"x1": scale.at(arm.low), "x2": scale.at(arm.high), "y1": "50%", "y2": "50%",
                                      "class": f"bar {colour}"}))
    if known(arm.mean):
        parts.append(element("circle", {"cx": scale.at(arm.mean), "cy": "50%", "r": 5.5, "class": f"{dot} {colour}"}))
    text = f"{arm.name}: {interval(arm.mean, arm.low, arm.high, in_percent=scale.in_percent)}"
    return element("svg", {"width": "100%", "height": 46, "role": "img", "aria-label": text,
                           "class": "row bars"}, *parts)


def board_axis(scale: Scale) -> Markup:
    """The scale under a leaderboard."""
    texts = [element("text", {"x": scale.at(t), "y": 14, "class": "tick middle"}, scale.label(t)) for t in scale.ticks]
    return element("svg", {"width": "100%", "height": 20, "aria-hidden": "true", "class": "row"}, *texts)


def thin(labels: np.ndarray, limit: int) -> np.ndarray:
    """Sorted row numbers of at most ``limit`` points, evenly through the data, so the same call gives the same map."""
    n = len(labels)
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).round().astype(np.int64)


def scatter(xy: np.ndarray, labels: np.ndarray, class_names: Sequence[str], description: str) -> Markup:
    """A map of points (N, 2), one colour and shape a class, its name written at the class's median.

    Negative labels and labels without a name are drawn grey.
    """
    if xy.ndim != 2 or xy.shape[1] != 2 or len(labels) != len(xy):
        raise UsageError(f"A map needs xy of shape (N, 2) and N labels, not {xy.shape} and {len(labels)}.",
                         where="feature_map")
    finite = np.isfinite(xy).all(1)
    xy, labels = xy[finite].astype(float), labels[finite]
    width, edge = 480.0, 14.0
    if len(xy) == 0:
        return element("svg", {"viewBox": "0 0 480 60", "role": "img", "aria-label": description, "class": "map"},
                       element("text", {"x": 240, "y": 34, "class": "tick middle"}, "no points"))
    low, extent = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-12)
    height = float(np.clip(width * extent[1] / extent[0], 280, 440))
    # one scale for both axes: distances on the map stay comparable in every direction
    factor = min((width - 2 * edge) / extent[0], (height - 2 * edge) / extent[1])
    placed = (xy - low - extent / 2) * factor * (1, -1) + (width / 2, height / 2)
    dots, names = [], []
    for k in sorted(set(labels.tolist())):
        mine = placed[labels == k]
        named = 0 <= k < len(class_names)
        # a zero-length stroke with a round (or square) cap is a dot: one path a class keeps the file small
        d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in mine)
        look = f"c{k % COLOURS}" if named else "ck"
        shape = "square" if named and (k // COLOURS) % 2 else "round"
        dots.append(element("path", {"d": d, "class": f"points {look} {shape}", "data-count": len(mine)}))
        if named and len(class_names) <= 30:
            x, y = np.median(mine, axis=0)
            names.append(element("text", {"x": float(x), "y": float(y) + 4, "class": "name middle halo"},
                                 class_names[k] if len(class_names[k]) <= 24 else class_names[k][:23] + "…"))
    return element("svg", {"viewBox": f"0 0 {number(width)} {height:.0f}", "role": "img", "aria-label": description,
                           "class": "map"}, *dots, *names)
