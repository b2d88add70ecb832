"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from osteon.report.numbers import number, percent, seconds


def run_page(plan: Mapping[str, Any]) -> str:
    """What one run takes."""
    run, time, memory, flop = plan["run"], plan["time"], plan["memory"], plan["flop"]
    training = run["train"]
    passes = training["steps"] * training["batch_size"] / run["samples"]
    lines = [f"{run['objective']} on {run['source']}: {run['backbone']}, {number(run['parameters'])} parameters, "
             f"{number(training['steps'])} steps of {training['batch_size']} ({passes:.1f} passes), {run['device']}",
             ""]
    lines += _block("Time", [
        f"about {seconds(time['total'])}: {seconds(time['steps'])} of steps ({seconds(time['step'])} each), "
        f"{seconds(time['start'])} to start, {seconds(time['saves'] + time['guard'] + time['finish'])} for checkpoints"
        + (", guard" if time["guard"] else "") + " and report"])
    lines += _block("Memory", [f"{size(memory['peak'])} at the peak ({memory['of']}); {size(memory['limit'])} "
                               f"{memory['limit_is']}: " + ("it fits" if memory["fits"] else "IT DOES NOT FIT")])
    if "batch" in plan:
        batch = plan["batch"]
        lines += [f"  largest batch that fits: {number(batch['size'])}, {size(batch['peak'])} "
                  f"({'tried' if batch['verified'] else 'not tried'}; {batch['why']})"]
    total = max(1, flop["total"])
    lines += _block("Compute", [
        f"{flop['total']:.3g} FLOP a step (" + ", ".join(f"{k} {percent(flop[k] / total, 0)}" for k in
                                                         ("forward", "backward", "views", "teachers"))
        + f"), {flop['run']:.3g} in all"])
    return "\n".join([*lines, *_rest(plan)])


def compare_page(plan: Mapping[str, Any]) -> str:
    """What a tournament takes."""
    from osteon.verbs._plan_compare import ARM

    rows = [ARM, *[[str(arm[k]) if isinstance(arm[k], str) else seconds(arm[k]) if k == "seconds" else
                    number(arm[k]) for k in ARM] for arm in plan["arms"]]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(ARM))]
    time = plan["time"]
    lines = [f"A tournament at {plan['budget']} an arm and seed, {plan['seeds']} seeds", ""]
    lines += _block("Arms", ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in
                                       enumerate(zip(row, widths, strict=True))) for row in rows])
    lines += _block("Time", [f"about {seconds(time['total'])} on {time['workers']} processes: "
                             f"{seconds(time['search'])} of search, {seconds(time['final'])} of final, "
                             f"{seconds(time['scratch'])} of training from scratch (of one process each)"])
    return "\n".join([*lines, *_rest(plan)])


def _rest(plan: Mapping[str, Any]) -> list[str]:
    """The data, every automatic choice, and what to mind."""
    data = plan["data"]
    facts = [f"{number(data['samples'])} images of {data['channels']} x {data['size']} x {data['size']}, mean "
             f"{data['mean']}, standard deviation {data['std']}",
             f"{data['exact_copies']} exact copies, {data['near_copies']['found']} near copies among "
             f"{data['near_copies']['searched']}, {data['constant']} constant, {sum(data['skipped'].values())} skipped"]
    if "classes" in data:
        counts = data["classes"].values()
        facts.append(f"{len(counts)} classes of {min(counts)} to {max(counts)} images")
    return [*_block("Data", facts), *_block("Chosen automatically", plan["notes"]),
            *_block("Mind", plan["warnings"] or ["nothing stands out"])]


def _block(title: str, lines: Iterable[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)]


def size(value: float) -> str:
    """Bytes for people: ``"1.21 GB"``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"
