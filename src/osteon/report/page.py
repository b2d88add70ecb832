"""A report: sections added one by one, written as a single HTML file that asks nothing of the network.

Pure data goes in (numbers, text, numpy arrays); every string is escaped; no script is used at all.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from osteon.core.atomic import write_bytes
from osteon.core.errors import UsageError
from osteon.report.figures import MAP_POINTS, Scale, board_axis, board_row, scatter, thin
from osteon.report.images import data_uri
from osteon.report.numbers import bounds, known, leader, number, percent, plain, score, tied
from osteon.report.project import project_2d
from osteon.report.svg import COLOURS, Arm, Axes, Series, compact, element, line_chart, styles, swatch
from osteon.report.templates import render, style_sheet

__all__ = ["Arm", "Cell", "Report", "Series", "Verdict", "project_2d"]

#: Answer -> (colour tone, drawing of the sign beside it): told apart by shape as well as by colour.
_SIGNS = {"pays": ("yes", "M5 12.5l4.5 4.5L19 7.5"), "does not pay": ("no", "M6.5 6.5l11 11m0-11l-11 11"),
          "cannot tell": ("open", "M6 10h12M6 15h12")}
_ANSWERS = {"pays": "It pays", "does not pay": "It does not pay", "cannot tell": "Cannot tell"}
#: Rows shown at once; longer tables start folded.
LONG = 24


@dataclass(frozen=True)
class Verdict:
    """What the page says first.

    Args:
        answer: ``"pays"``, ``"does not pay"``, ``"cannot tell"``, or another short word.
        sentence: the verdict in one sentence.
        numbers: name -> number, text, or (text, small text under it).
        note: small print under the numbers.
    """

    answer: str
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, small lines under it, a tag beside it (look ``"best"`` or ``"tie"``), bold or not."""

    text: str
    small: str = ""
    under: str = ""
    tag: str = ""
    look: str = ""
    strong: bool = False


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    body: Markup
    note: str
    sub: bool


class Report:
    """One page. Add sections in the order they should be read, then :meth:`save`.

    Args:
        title: what the report is about.
        verdict: the sentence on top, or None.
        footer: the line at the end.
    """

    def __init__(self, title: str, verdict: Verdict | None = None, *, footer: str = "Made by osteon.") -> None:
        self.title, self.verdict, self.footer = title, verdict, footer
        self._sections: list[_Section] = []
        self._ids: Counter[str] = Counter(("verdict",))

    # -- words and tables ------------------------------------------------------------------------------------------

    def text(self, title: str, paragraphs: Sequence[str] | str, *, note: str = "", sub: bool = False) -> None:
        """Add paragraphs of plain text."""
        lines = [paragraphs] if isinstance(paragraphs, str) else list(paragraphs)
        self._add(title, render("text", {"paragraphs": lines}), note, sub)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "", *,
              fold: bool | None = None, stack: bool = False, sub: bool = False) -> None:
        """Add a table whose first column names the rows.

        Long tables start folded unless ``fold`` is False; with ``stack`` every row becomes a small block on a phone.
        """
        self._add(title, self._table(title, columns, rows, fold, stack=stack), note, sub)

    def config(self, title: str, values: Mapping[str, Any], note: str = "") -> None:
        """Add settings, nested ones with dotted names; more than a dozen start folded."""
        pairs = list(_flat(values))
        fold = f"Show {len(pairs)} settings" if len(pairs) > 12 else ""
        self._add(title, render("pairs", {"pairs": pairs, "fold": fold, "label": title}), note, False)

    def environment(self, values: Mapping[str, Any], note: str = "") -> None:
        """Add versions, hardware and where the data came from."""
        pairs = list(_flat(values))
        fold = f"Show {len(pairs)} entries" if len(pairs) > 6 else ""
        self._add("Environment", render("pairs", {"pairs": pairs, "fold": fold, "label": "Environment"}), note, False)

    def skipped(self, rows: Iterable[Any], note: str = "", *, shown: int = 200) -> None:
        """Add the samples that were left out: pairs (or objects with) ``id``, ``reason``; counted by reason."""
        pairs = [(str(r.id), str(r.reason)) if hasattr(r, "reason") else (str(r[0]), str(r[1])) for r in rows]
        if not pairs:
            self._add("Skipped", render("text", {"paragraphs": ["Nothing was skipped."]}), note, False)
            return
        counts = [(reason, n) for reason, n in Counter(reason for _, reason in pairs).most_common(LONG)]
        body = self._table("Skipped, by reason", ["Reason", "Samples"], counts, False)
        body += self._table("Skipped samples", ["Sample", "Reason"], pairs[:shown], True,
                            f"Show {min(shown, len(pairs))} of {len(pairs):,} skipped samples")
        self._add("Skipped", body, note, False)

    # -- scores and curves -----------------------------------------------------------------------------------------

    def leaderboard(self, title: str, arms: Sequence[Arm], note: str = "", *, metric: str = "accuracy",
                    in_percent: bool = True, sub: bool = False, lowest: bool = False) -> None:
        """Add competitors from best to worst, each with its interval, ties with the best marked.

        Args:
            title: heading.
            arms: fractions in [0, 1] when ``in_percent``.
            note: line under it.
            metric: name of what is compared; higher is better.
            in_percent: whether the scores are fractions to be printed in percent.
            sub: a part of the section before it.
            lowest: less is better.
        """
        sign = 1 if lowest else -1
        order = sorted(arms, key=lambda a: sign * a.mean if known(a.mean) else float("inf"))
        first = leader([a.mean for a in order], lowest=lowest)
        best = order[first] if first is not None else None
        scale, rows = Scale(order, in_percent), []
        for arm in order:
            tie = (best is not None and arm is not best and known(arm.mean)
                   and tied(best.low, best.high, arm.low, arm.high))
            mark, look = ("best", "best") if arm is best and len(order) > 1 else ("tie", "tie") if tie else ("", "")
            rows.append({"name": arm.name, "control": arm.kind == "control", "mark": mark, "look": look,
                         "note": arm.note, "plot": board_row(arm, scale, best),
                         "value": score(arm.mean, in_percent=in_percent),
                         "bounds": bounds(arm.low, arm.high, in_percent=in_percent)})
        body = render("board", {"rows": rows, "axis": board_axis(scale), "measure": metric})
        self._add(title, body, note, sub)

    def curves(self, title: str, series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False,
               note: str = "", *, in_percent: bool = False, x_ticks: Sequence[tuple[float, str]] = (),
               sub: bool = False) -> None:
        """Add a line chart with bands; controls are dashed. Few points are also given as a table."""
        said = _describe(series, x_label, y_label, in_percent)
        many = len(series) > 1
        wide = Axes(1040, 360, x_label, y_label, log_x, in_percent, many and len(series) <= 12, x_ticks)
        narrow = Axes(360, 270, x_label, y_label, log_x, in_percent, False, x_ticks)
        drawings = [(line_chart(series, wide, said), "wide"), (line_chart(series, narrow, said), "narrow")]
        legend = [(swatch(*look, s.control), s.name) for s, look in zip(series, styles(series), strict=True)]
        body = render("figure", {"drawings": drawings, "legend": legend if many else [], "always": not wide.end_labels,
                                 "data": self._numbers(title, series, x_label, in_percent, dict(x_ticks))})
        self._add(title, body, note, sub)

    def panels(self, title: str, panels: Sequence[tuple[str, Series]], x_label: str, y_label: str,
               note: str = "", *, sub: bool = False) -> None:
        """Add one small chart a series, each on its own scale: for losses, which do not compare across methods."""
        axes = Axes(400, 180, x_label, "")
        drawn = [(name, line_chart([s], axes, _describe([s], x_label, y_label, False))) for name, s in panels]
        self._add(title, render("panels", {"panels": drawn}), note, sub)

    # -- pictures --------------------------------------------------------------------------------------------------

    def gallery(self, title: str, rows: Sequence[Sequence[tuple[np.ndarray, str]]], note: str = "", *,
                labelled: bool = False, sub: bool = False) -> None:
        """Add rows of a query and its nearest neighbours, each an image (H, W, C) uint8 and a caption.

        With ``labelled`` captions are classes, and neighbours of another class than the query are marked.
        """
        drawn = []
        for r, row in enumerate(rows):
            pictures = []
            for j, (image, caption) in enumerate(row):
                differs = labelled and j > 0 and caption != row[0][1]
                what = f"Query {r + 1}" if j == 0 else f"Neighbour {j} of query {r + 1}"
                alt = what + (f": {caption}" if caption else "") + (" (another class)" if differs else "")
                look = "query" if j == 0 else "differs" if differs else ""
                pictures.append(_picture(image, alt, f"≠ {caption}" if differs else caption, look))
            drawn.append(pictures)
        width = max((len(row) for row in rows), default=1)
        self._add(title, render("gallery", {"rows": drawn, "width": width}), note, sub)

    def reconstructions(self, title: str, triples: tuple[np.ndarray, np.ndarray, np.ndarray], note: str = "", *,
                        shown: int = 8, sub: bool = False) -> None:
        """Add what a masked objective saw and rebuilt: (input, corrupted, output), each (n, H, W, C) uint8."""
        if len({len(t) for t in triples}) != 1:
            raise UsageError("Input, corrupted and output need the same number of images.", where="reconstructions")
        names = ("Original", "Masked", "Rebuilt")
        drawn = [[_picture(images[i], f"{name}, example {i + 1}", name, "")
                  for name, images in zip(names, triples, strict=True)] for i in range(min(shown, len(triples[0])))]
        self._add(title, render("triples", {"triples": drawn}), note, sub)

    def feature_map(self, title: str, xy: np.ndarray, labels: np.ndarray, class_names: Sequence[str], note: str = "", *,
                    sub: bool = False) -> None:
        """Add a map of the features: ``xy`` (N, 2), e.g. from :func:`project_2d`, and a class number a point.

        Labels below 0 or beyond ``class_names`` are drawn grey. Above 3,000 points an even selection is drawn.
        """
        xy, labels = np.asarray(xy), np.asarray(labels).astype(np.int64).ravel()
        rows = thin(labels, MAP_POINTS)
        counts = Counter(labels[rows].tolist())
        named = [(class_names[k] if 0 <= k < len(class_names) else "no class", n) for k, n in sorted(counts.items())]
        said = f"Map of {len(rows):,} samples: " + ", ".join(f"{name} {n}" for name, n in named[:40])
        drawing = scatter(xy[rows] if len(rows) != len(xy) and len(labels) == len(xy) else xy, labels[rows],
                          class_names, said)
        legend = [(_mark(k), class_names[k]) for k in sorted(counts) if 0 <= k < len(class_names)][:60]
        if len(rows) < len(labels):
            note = f"{len(rows):,} of {len(labels):,} samples are drawn. {note}".strip()
        self._add(title, render("figure", {"drawings": [(drawing, "")], "legend": legend, "always": True, "data": ""}),
                  note, sub)

    # -- the whole -------------------------------------------------------------------------------------------------

    def html(self) -> str:
        """The page as text."""
        contents = [(s.id, s.title) for s in self._sections if not s.sub]
        return str(render("page", {"title": self.title, "css": style_sheet(), "verdict": _verdict(self.verdict),
                                   "contents": contents, "sections": self._sections, "footer": self.footer}))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page so that a reader sees the old file or the new one, never half; returns its path."""
        # file names on disk need not be valid Unicode; a stray byte must not cost the report
        write_bytes(path, self.html().encode("utf-8", "replace"))
        return Path(path)

    def _add(self, title: str, body: Markup, note: str, sub: bool) -> None:
        text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:40] or "section"
        self._ids[stem] += 1
        count = self._ids[stem]
        self._sections.append(_Section(stem if count == 1 else f"{stem}-{count}", title, body, note,
                                       sub and bool(self._sections)))

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], fold: bool | None,
               summary: str = "", stack: bool = False) -> Markup:
        for row in rows:
            if len(row) != len(columns):
                raise UsageError(f"A row of the table {title!r} has {len(row)} cells for {len(columns)} columns.",
                                 where="report")
        cells = [[c if isinstance(c, Cell) else Cell(_text(c)) for c in row] for row in rows]
        heads = [{"name": name, "numeric": j > 0 and bool(cells) and all(_numeric(row[j].text) for row in cells)}
                 for j, name in enumerate(columns)]
        folded = len(rows) > LONG if fold is None else fold
        look = "stack" if stack else "slim" if len(columns) <= 3 else ""
        return render("table", {"label": title, "columns": heads, "rows": cells, "look": look,
                                "fold": (summary or f"Show {len(rows):,} rows") if folded else ""})

    def _numbers(self, title: str, series: Sequence[Series], x_label: str, in_percent: bool,
                 names: Mapping[float, str]) -> Markup:
        """The values behind a chart as a folded table: for screen readers, and for copying."""
        xs = sorted({float(x) for s in series for x in s.x if known(x)})
        if not xs or len(series) > 12:
            return Markup()
        if len(xs) > LONG:  # an even selection with both ends
            xs = [xs[i] for i in np.linspace(0, len(xs) - 1, LONG).round().astype(int)]
        columns: list[dict[float, Cell]] = []
        for s in series:
            nothing: list[float | None] = [None] * len(s.x)
            low, high = s.low if s.low is not None else nothing, s.high if s.high is not None else nothing
            columns.append({float(x): Cell(score(y, in_percent=in_percent), bounds(a, b, in_percent=in_percent))
                            for x, y, a, b in zip(s.x, s.y, low, high, strict=True)})
        rows = [[names.get(x, number(x, 6)), *(c.get(x, Cell("–")) for c in columns)] for x in xs]
        return self._table(f"{title}: numbers", [x_label, *(s.name for s in series)], rows, True, "The numbers")


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}" if type(value) is int else plain(value)


def _numeric(text: str) -> bool:
    return bool(re.match(r"[+\-−]?[\d.,]+( ?%| s| min| h|e[+-]?\d+|$)", text)) or text in ("", "–", "n/a")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
            yield from _flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def _picture(image: np.ndarray, alt: str, caption: str, look: str) -> dict[str, Any]:
    image = np.asarray(image)
    return {"src": data_uri(image), "alt": alt, "caption": caption, "look": look, "small": max(image.shape[:2]) < 64}


def _mark(k: int) -> Markup:
    """The sample of a class in the legend of a map."""
    shape = "square" if (k // COLOURS) % 2 else "round"
    return element("svg", {"viewBox": "0 0 10 10", "aria-hidden": "true", "class": "mark"},
                   element("path", {"d": "M5 5h0", "style": "stroke-width:8",
                                     "class": f"points c{k % COLOURS} {shape}"}))


def _describe(series: Sequence[Series], x_label: str, y_label: str, in_percent: bool) -> str:
    """What a screen reader says of a chart: its axes and where every line ends."""
    ends = []
    for s in series[:20]:
        kept = [(x, y) for x, y in zip(s.x, s.y, strict=True) if known(x) and known(y)]
        if kept:
            value = percent(kept[-1][1]) if in_percent else number(kept[-1][1])
            ends.append(f"{s.name} ends at {value} ({compact(kept[-1][0])})")
    return f"Chart of {y_label} against {x_label}. " + ("; ".join(ends) or "No data") + "."


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    tone, path = _SIGNS.get(verdict.answer.lower(), ("open", "M6 12h12"))
    icon = element("svg", {"viewBox": "0 0 24 24", "aria-hidden": "true", "fill": "none", "stroke": "currentColor",
                           "stroke-width": 2.5, "stroke-linecap": "round", "stroke-linejoin": "round"},
                   element("circle", {"cx": 12, "cy": 12, "r": 11, "stroke-width": 1.6}), element("path", {"d": path}))
    numbers = []
    for key, value in verdict.numbers.items():
        main, small = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
        numbers.append((key, _text(main), _text(small) if small else ""))
    return {"tone": tone, "icon": icon, "answer": _ANSWERS.get(verdict.answer.lower(), verdict.answer),
            "sentence": verdict.sentence, "long": len(verdict.sentence) > 170, "numbers": numbers,
            "note": verdict.note}
