"""The page of a match: who finds whom, which classes are named, and what some queries find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.report.page import Report


def write_match_report(result: Mapping[str, Any], examples: Sequence[Sequence[tuple[np.ndarray, str]]],
                       path: Path) -> Path:
    """Write the page of what :func:`osteon.match` returned.

    Args:
        result: its result.
        examples: rows of pictures with captions: a query, then what it finds.
        path: the ``.html`` file.
    """
    report = Report(f"Matching {', '.join(result['members'])}")
    places = sorted((k for k in result["retrieval"][0] if k.startswith("recall@")), key=lambda k: int(k[7:])) \
        if result["retrieval"] else []
    report.table("Does a member find its partner?", ["query", "looks for", "network", "queries", *places, "chance at 1",
                                                     "first is of its class"], [
        [r["from"], r["to"], r["network"], f"{r['queries']:,}", *(_score(r[k]) for k in places),
         f"{r['chance@1']:.1f}", "" if r.get("same_class") is None else _score(r["same_class"])]
        for r in result["retrieval"]], note="Per cent of the queries whose partner is among the first so many.")
    if result["zero_shot"]:
        report.table("Classes named by another modality", ["of", "by", "network", "queries", "accuracy", "chance"], [
            [r["of"], r["by"], r["network"], f"{r['queries']:,}", _score(r["accuracy"]), f"{r['chance']:.1f}"]
            for r in result["zero_shot"]], note="Nothing is fitted on labels of the modality that is classified.")
    if examples:
        names = result["members"]
        report.gallery(f"What a query of {names[0]} finds by {names[1]}", examples)
    report.text("What was done", list(result["notes"]))
    return report.save(path)


def _score(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
