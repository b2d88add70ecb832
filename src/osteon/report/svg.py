"""Line charts, interval rows and scatter maps as inline SVG whose text stays text and whose colours follow the page.

Every function takes plain numbers and returns escaped markup. Colours are CSS variables (``--c0`` ...), so that one
drawing serves light and dark. ``Series`` and ``Arm``, what the figures are drawn from, live here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from osteon.report.numbers import known, number, percent, score

#: Dash patterns of controls, in the order they appear; recipes are solid.
DASHES = ("6 4", "2 3", "9 3 2 3", "12 4", "4 2")
#: Numbers beyond this cannot be scaled without overflow and count as not finite.
LARGEST = 1e300
#: How many colours the page defines for recipes.
COLOURS = 7


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: what the legend says.
        x: positions, any length.
        y: values, as many as ``x``; NaN breaks the line.
        low: lower edge of a band, or None.
        high: upper edge of a band, or None.
        control: drawn dashed and grey, as something to compare with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    control: bool = False


@dataclass(frozen=True)
class Arm:
    """One competitor of a leaderboard.

    Args:
        name: what it is called.
        kind: ``"recipe"`` or ``"control"``.
        mean: its score.
        low: lower end of its interval, or None.
        high: upper end, or None.
        note: small print under the name.
    """

    name: str
    kind: str
    mean: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Axes:
    """How a chart is laid out: its size in pixels, the words on its axes, and its scales."""

    width: int
    height: int
    x_label: str
    y_label: str
    log_x: bool = False
    in_percent: bool = False
    end_labels: bool = False
    x_ticks: Sequence[tuple[float, str]] = field(default_factory=tuple)


def element(name: str, attributes: Mapping[str, object], *children: object) -> Markup:
    """One SVG element; attribute values and children are escaped unless they are markup already."""
    head = "".join(f' {key}="{escape(_short(value))}"' for key, value in attributes.items() if value is not None)
    body = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{head}>{body}</{name}>")


def _short(value: object) -> object:
    """Floats with one decimal: a tenth of a pixel is finer than any screen shows."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between ``low`` and ``high``, about ``count`` of them."""
    if not (known(low) and known(high)) or high <= low:
        return [low] if known(low) else []
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers, with 2 and 5 between them when there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 2, 5)):
        ticks = [d * 10.0**p for p in range(first, last + 1) for d in digits]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) >= 3:
            return ticks
    return ticks or [low, high]


def compact(value: float) -> str:
    """A tick label that stays short: ``12000`` -> ``"12k"``, ``2500000`` -> ``"2.5M"``."""
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and (value / size * 10) % 1 == 0):
            return f"{value / size:g}{unit}"
    return number(value)


class _Frame:
    """The plotting area of a chart and the maps from data to pixels."""

    def __init__(self, series: Sequence[Series], axes: Axes) -> None:
        self.axes = axes
        xs = _finite([s.x for s in series])
        if axes.log_x:
            xs = xs[xs > 0]
        ys = _finite([v for s in series for v in (s.y, s.low, s.high) if v is not None])
        self.x0, self.x1 = _span(xs, pad=0.0)
        self.y0, self.y1 = _span(ys, pad=0.06)
        if axes.in_percent:
            self.y0, self.y1 = max(0.0, self.y0), min(1.0, self.y1) if self.y1 <= 1.06 else self.y1
        if axes.log_x and self.x0 <= 0:
            self.x0, self.x1 = 1.0, 10.0
        self.y_ticks = nice_ticks(self.y0, self.y1, 5 if axes.height > 200 else 3)
        if len(self.y_ticks) > 1:  # the axis ends on a tick at both ends
            step = self.y_ticks[1] - self.y_ticks[0]
            self.y0, self.y1 = (math.floor(self.y0 / step + 1e-9) * step, math.ceil(self.y1 / step - 1e-9) * step)
            self.y_ticks = [round(self.y0 + i * step, 12) + 0.0 for i in range(round((self.y1 - self.y0) / step) + 1)]
        longest = min(26, max((len(s.name) for s in series), default=0)) if axes.end_labels else 0
        widest = max((len(self.y_text(v)) for v in self.y_ticks), default=1)
        self.left, self.right = 12.0 + 7.6 * widest, axes.width - (46.0 + longest * 7.4 if longest else 14.0)
        self.top, self.bottom = 26.0 if axes.y_label else 10.0, axes.height - 40.0

    def x(self, value: float) -> float:
        """Pixel column of a data value."""
        a, b, v = self.x0, self.x1, value
        if self.axes.log_x:
            a, b, v = math.log(a), math.log(b), math.log(v)
        return self.left + (self.right - self.left) * ((v - a) / (b - a) if b > a else 0.5)

    def y(self, value: float) -> float:
        """Pixel row of a data value."""
        return self.bottom - (self.bottom - self.top) * (value - self.y0) / (self.y1 - self.y0)

    def y_text(self, value: float) -> str:
        """Tick label of a row."""
        if not self.axes.in_percent:
            return compact(value)
        return percent(value, 0 if self.y1 - self.y0 > 0.04 else 1)

    def drawable(self, s: Series) -> np.ndarray:
        """(n,) bool: points that can be placed (finite, and positive on a logarithmic axis)."""
        x, y = np.asarray(s.x, dtype=float), np.asarray(s.y, dtype=float)
        return (np.abs(x) < LARGEST) & (np.abs(y) < LARGEST) & ((x > 0) if self.axes.log_x else True)


def _finite(values: Sequence[Sequence[float]]) -> np.ndarray:
    """All finite numbers of several sequences."""
    flat = np.concatenate([np.asarray(v, dtype=float).ravel() for v in values]) if values else np.empty(0)
    return flat[np.abs(flat) < LARGEST]


def _span(values: np.ndarray, pad: float) -> tuple[float, float]:
    """Smallest and largest value with a margin; never empty, so that a flat line has somewhere to lie."""
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (-1.0, 1.0)
    return low - pad * (high - low), high + pad * (high - low)


def styles(series: Sequence[Series]) -> list[tuple[str, str | None]]:
    """(CSS colour class, dash pattern or None) of every series: recipes in colour, controls grey and dashed."""
    out: list[tuple[str, str | None]] = []
    recipes = controls = 0
    for s in series:
        if s.control:
            out.append(("ck", DASHES[controls % len(DASHES)]))
            controls += 1
        else:  # past the palette, colours come back with a dash pattern
            wraps = recipes // COLOURS
            out.append((f"c{recipes % COLOURS}", DASHES[(wraps - 1) % len(DASHES)] if wraps else None))
            recipes += 1
    return out


def line_chart(series: Sequence[Series], axes: Axes, description: str) -> Markup:
    """A line chart with bands; the description is what a screen reader says."""
    frame = _Frame(series, axes)
    looks = styles(series)
    parts = [_axes(frame)]
    parts += [_band(frame, s, look[0]) for s, look in zip(series, looks, strict=True) if s.low is not None]
    parts += [_line(frame, s, *look) for s, look in zip(series, looks, strict=True)]
    if axes.end_labels:
        parts.append(_end_labels(frame, series, looks))
    return element("svg", {"viewBox": f"0 0 {axes.width} {axes.height}", "role": "img", "aria-label": description,
                           "class": "chart"}, *parts)


def _axes(frame: _Frame) -> Markup:
    """Grid lines, tick labels and the words on both axes."""
    axes, out = frame.axes, []
    for value in frame.y_ticks:
        y = frame.y(value)
        out.append(element("line", {"x1": frame.left, "x2": frame.right, "y1": y, "y2": y, "class": "grid"}))
        out.append(element("text", {"x": frame.left - 8, "y": y + 4, "class": "tick end"}, frame.y_text(value)))
    ticks = list(axes.x_ticks)
    if not ticks:
        count = max(3, int((frame.right - frame.left) / 110))
        values = log_ticks(frame.x0, frame.x1) if axes.log_x else nice_ticks(frame.x0, frame.x1, count)
        ticks = [(v, compact(v)) for v in values]
    for value, label in ticks:
        x = frame.x(value)
        out.append(element("line", {"x1": x, "x2": x, "y1": frame.bottom, "y2": frame.bottom + 4, "class": "axis"}))
        out.append(element("text", {"x": x, "y": frame.bottom + 18, "class": "tick middle"}, label))
    out.append(element("line", {"x1": frame.left, "x2": frame.right, "y1": frame.bottom, "y2": frame.bottom,
                                "class": "axis"}))
    out.append(element("text", {"x": frame.right, "y": axes.height - 4.0, "class": "word end"}, axes.x_label))
    if axes.y_label:
        out.append(element("text", {"x": 0, "y": 12, "class": "word"}, axes.y_label))
    return Markup("").join(out)


def _band(frame: _Frame, s: Series, colour: str) -> Markup:
    """The shaded interval of a series, one polygon an unbroken stretch."""
    low, high = np.asarray(s.low, dtype=float), np.asarray(s.high if s.high is not None else s.y, dtype=float)
    keep = frame.drawable(s) & np.isfinite(low) & np.isfinite(high)
    out = []
    for run in _runs(keep):
        up = [f"{frame.x(s.x[i]):.1f},{frame.y(float(high[i])):.1f}" for i in run]
        down = [f"{frame.x(s.x[i]):.1f},{frame.y(float(low[i])):.1f}" for i in reversed(run)]
        out.append(element("polygon", {"points": " ".join(up + down), "class": f"band {colour}"}))
    return Markup("").join(out)


def _line(frame: _Frame, s: Series, colour: str, dash: str | None) -> Markup:
    """The line of a series, and its points (with a tooltip) where there are few."""
    keep, out = frame.drawable(s), []
    few = int(keep.sum()) <= 12
    for run in _runs(keep):
        d = "M" + "L".join(f"{frame.x(s.x[i]):.1f} {frame.y(s.y[i]):.1f}" for i in run)
        if len(run) > 1:
            out.append(element("path", {"d": d, "class": f"line {colour}", "stroke-dasharray": dash}))
        for i in run if few or len(run) == 1 else ():
            text = f"{s.name} at {compact(s.x[i])}: {score(s.y[i], in_percent=frame.axes.in_percent)}"
            out.append(element("circle", {"cx": frame.x(s.x[i]), "cy": frame.y(s.y[i]), "r": 3.5 if few else 1.5,
                                          "class": f"{'hollow' if s.control else 'dot'} {colour}"},
                               element("title", {}, text)))
    return Markup("").join(out)


def _runs(keep: np.ndarray) -> list[list[int]]:
    """Unbroken stretches of True, as lists of positions."""
    out: list[list[int]] = []
    for i in np.flatnonzero(keep).tolist():
        if out and out[-1][-1] == i - 1:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def _end_labels(frame: _Frame, series: Sequence[Series], looks: Sequence[tuple[str, str | None]]) -> Markup:
    """Names at the right end of the lines, moved apart where they would overlap."""
    ends: list[tuple[float, str, str, str | None]] = []
    for s, (colour, dash) in zip(series, looks, strict=True):
        kept = np.flatnonzero(frame.drawable(s))
        if kept.size:
            name = s.name if len(s.name) <= 26 else s.name[:25] + "…"
            ends.append((frame.y(s.y[int(kept[-1])]), name, colour, dash))
    ends.sort(key=lambda e: e[0])
    rows = spread([e[0] for e in ends], 16.0, frame.top + 4, frame.bottom)
    out, x = [], frame.right + 12
    for y, (_, name, colour, dash) in zip(rows, ends, strict=True):
        out.append(element("path", {"d": f"M{x:.1f} {y:.1f}h24", "class": f"line {colour}", "stroke-dasharray": dash}))
        out.append(element("text", {"x": x + 30, "y": y + 4, "class": f"name {colour}"}, name))
    return Markup("").join(out)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted positions moved as little as needed to be ``gap`` apart and inside [low, high] where they fit."""
    out = list(positions)
    for i, p in enumerate(out):
        out[i] = max(p, out[i - 1] + gap if i else low)
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], out[i + 1] - gap if i + 1 < len(out) else high)
    return out


def swatch(colour: str, dash: str | None, control: bool) -> Markup:
    """The sample of a line in the legend."""
    return element("svg", {"width": 30, "height": 10, "aria-hidden": "true", "class": "swatch"},
                   element("path", {"d": "M1 5H29", "class": f"line {colour}", "stroke-dasharray": dash}),
                   element("circle", {"cx": 15, "cy": 5, "r": 3,
                                      "class": f"{'hollow' if control else 'dot'} {colour}"}))
