"""A page of evidence made of measured sections, and the clock they share."""

from __future__ import annotations

import inspect
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"

Section = tuple[str, Callable[[], list[str]]]


def take_turns(works: Mapping[str, Callable[[], object]], rounds: int = 3, warm_up: bool = True
               ) -> dict[str, list[float]]:
    """CPU seconds of pieces of work, one after the other in every round; the first round is thrown away."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + warm_up):
        for name, work in works.items():
            begun = time.process_time()
            work()
            if turn >= warm_up:
                spent[name].append(time.process_time() - begun)
    return spent


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median over rounds of the first over the second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def write_page(name: str, title: str, intro: str, sections: Sequence[Section], footer: str = "") -> None:
    """Measure every section, print it, and write docs/evidence/NAME.md; words on the command line choose sections."""
    torch.set_num_threads(1)
    chosen = [s for s in sections if any(word.lower() in s[0].lower() for word in sys.argv[1:])] or list(sections)
    page = [f"# {title}", "", f"Regenerate with `python -m benchmarks.{name}`.", "", intro, "",
            f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}.", ""]
    for heading, measure in chosen:
        print(f"== {heading}", flush=True)
        lines = measure()
        print("\n".join(lines), flush=True)
        page += [f"## {heading}", "", inspect.cleandoc(measure.__doc__ or ""), "", "```", *lines, "```", ""]
    if len(chosen) == len(sections):
        page += [footer, ""] if footer else []
        (EVIDENCE / f"{name}.md").write_text("\n".join(page), encoding="utf-8")
