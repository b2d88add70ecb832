"""``osteon analyse``: look inside a run and say what is healthy, with the threshold and where it comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.atomic import write_text
from osteon.core.errors import DataError, UsageError, nearest
from osteon.core.options import coerce
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.report.page import Report, Series, Verdict
from osteon.verbs._alone import alone_in
from osteon.verbs._analyses import ANALYSES, ON_REQUEST
from osteon.verbs._analysis_context import Context, Section
from osteon.verbs._model import load_trained

RESULT, PAGE = "analysis.json", "analysis.html"


@alone_in("out", "run")
def analyse(run: str | Path, source: str | Path, *, only: Sequence[str] = (), against: str | Path | None = None,
            ood: str | Path | None = None, samples: int = 2000, seed: int = 0, out: str | Path | None = None,
            settings: Mapping[str, Any] | None = None, progress: bool = True) -> dict[str, Any]:
    """Diagnose a run on a source.

    Args:
        run: run folder.
        source: samples it is looked at with; labels serve some analyses.
        only: names of analyses; by default all but ``intrinsic_dimension``, which trains networks, and beside
            graphs ``feasibility``, which compares graphs.
        against: another run, compared layer by layer.
        ood: source of samples unlike ``source``.
        samples: use at most so many, drawn at random.
        seed: of everything random.
        out: folder for ``analysis.json`` and ``analysis.html``; by default the run's own.
        settings: ``directions`` (list of subspace sizes) and ``fit_epochs`` of ``intrinsic_dimension``.
        progress: tell what goes on.

    Returns:
        ``sections`` (findings, tables, remarks, or why left out), ``healthy``, ``unhealthy`` (findings in words),
        ``report`` (path of the page), ``notes``.
    """
    say = _speaker(progress)
    asked = _asked(only)
    if samples < 2:
        raise UsageError(f"{samples} samples tell nothing.", where="--samples", fix="Use at least 100.")
    options = _options(settings or {})
    model = load_trained(run)
    names = asked or [n for n in ANALYSES if n not in ON_REQUEST or n == "feasibility"
                      and model.spec.modality == "graph"]
    dataset = open_source(source, like=model.spec)
    notes = list(dataset.notes)
    if len(dataset) < 2:
        raise DataError("At least two samples are needed.", where=str(source))
    if len(dataset) > samples:
        rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:samples])
        dataset = dataset.subset(rows)
        notes.append(f"samples: {samples:,} drawn at random with seed {seed}")
    context = Context(model, dataset, RunFolder(run), None if against is None else load_trained(against),
                      None if ood is None else open_source(ood, like=model.spec), seed, **options)
    if context.against is not None and (context.against.spec.channels, context.against.spec.modality) != (
            model.spec.channels, model.spec.modality):
        raise UsageError("The two runs take different modalities or numbers of channels.", where=f"--against {against}")
    sections = []
    for name in names:
        say(f"{name} ...")
        sections.append(_run(name, context))
    bad = [f.what for s in sections for f in s.findings if f.healthy is False]
    good = [f.what for s in sections for f in s.findings if f.healthy]
    result = plain({"run": str(run), "source": str(source), "samples": len(dataset), "healthy": good, "unhealthy": bad,
                    "sections": [asdict(s) for s in sections], "notes": notes}, finite=True)
    folder = Path(run if out is None else out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    result["report"] = str(_page(sections, model.name, str(source), len(dataset), notes).save(folder / PAGE))
    return result


def summary(result: Mapping[str, Any]) -> str:
    """Findings for the terminal: ok, LOOK, or no judgement; with threshold and source."""
    lines = []
    for section in result["sections"]:
        lines.append(section["title"] + (f": left out, {section['skipped']}" if section["skipped"] else ""))
        for f in section["findings"]:
            mark = {True: "ok  ", False: "LOOK", None: "    "}[f["healthy"]]
            value = "–" if f["value"] is None else f"{f['value']:.4g}"
            lines.append(f"  {mark} {f['what']}: {value}  ({f['threshold']}; {f['source']})")
        lines += [f"       {note}" for note in section["notes"]]
    return "\n".join(lines)


def _asked(only: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(str(n).strip().lower().replace("-", "_") for n in only))
    for name in names:
        if name not in ANALYSES:
            raise UsageError(f"There is no analysis called '{name}'.{nearest(name, ANALYSES)}", where="--only",
                             fix=f"Analyses: {', '.join(ANALYSES)}.")
    return [n for n in ANALYSES if n in names]


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {"directions": "tuple[int, ...]", "fit_epochs": "int"}
    for key in settings:
        if key not in known:
            raise UsageError(f"Unknown setting '{key}'.{nearest(key, known)}", where="--set",
                             fix=f"Known settings: {', '.join(known)}.")
    found = {k: coerce(v, known[k], name=k, where="--set") for k, v in settings.items()}
    if any(d < 1 for d in found.get("directions", ())) or found.get("fit_epochs", 1) < 1 or (
            "directions" in found and not found["directions"]):
        raise UsageError("directions and fit_epochs are at least 1.", where="--set")
    return found


def _run(name: str, context: Context) -> Section:
    """One analysis; what a network or its data do not offer leaves the section out and says why."""
    try:
        return ANALYSES[name](context)
    except (UsageError, DataError) as error:
        return Section(name, name.replace("_", " ").capitalize(), skipped=error.what)


def _page(sections: Sequence[Section], run: str, source: str, samples: int, notes: Sequence[str]) -> Report:
    findings = [f for s in sections for f in s.findings]
    bad, judged = [f for f in findings if f.healthy is False], [f for f in findings if f.healthy is not None]
    sentence = (f"{len(judged) - len(bad)} of {len(judged)} checks of {run} on {samples:,} samples of {source} are "
                "healthy." + (" Look at: " + "; ".join(f.what for f in bad) + "." if bad else ""))
    verdict = Verdict("Look here" if bad else "Healthy", sentence,
                      note="A threshold is a rule of thumb: its source stands beside it.")
    report = Report(f"Inside {run}", verdict)
    words = {True: "healthy", False: "look at it", None: "–"}
    report.table("Findings", ["What", "Value", "", "Threshold", "Source"],
                 [[f.what, "–" if not np.isfinite(f.value) else f"{f.value:.4g}", words[f.healthy], f.threshold,
                   f.source] for f in findings], fold=False, stack=True)
    for section in sections:
        if section.skipped:
            continue
        if section.curve:
            report.curves(section.title, [Series(name, list(range(1, len(y) + 1)), y)
                                          for name, y in section.curve.items()], "number", "")
        if section.rows:
            report.table(section.title if not section.curve else f"{section.title}: numbers", section.columns,
                         section.rows)
        if section.notes:
            report.text(f"{section.title}: remarks", section.notes)
    left = [f"{s.title}: {s.skipped}" for s in sections if s.skipped]
    if left:
        report.text("Not on this page", left)
    report.text("Notes", list(notes))
    report.environment(collect({}))
    return report


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)
