"""``osteon plan``: what a run or a tournament will take and what to mind, before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.data.mixture import open_mixed
from osteon.verbs._plan_data import check_data
from osteon.verbs._plan_memory import largest_batch, read_memory
from osteon.verbs._plan_probe import Probe, free_memory, probe
from osteon.verbs._pretrain_settings import opening
from osteon.verbs.pretrain import speaker

#: steps of the main probe
PROBE_STEPS = 20
#: fewer passes over the data, or steps, than this rarely show what an objective can do
FEW_EPOCHS, FEW_STEPS = 10, 500


def plan(source: str | Path, *, objective: str | None = None, backbone: str | None = None, steps: int | None = None,
         epochs: float | None = None, batch_size: int | None = None, accumulate: int | None = None,
         precision: str | None = None, seed: int | None = None, settings: Mapping[str, Any] | None = None,
         config: str | Path | None = None, init: str | Path | None = None, guard: str | Path | None = None,
         memory: str | None = None, largest: bool = True, recipes: str | Path | Sequence[Any] | None = None,
         budget: str | None = None, train: str | Path | None = None, test: str | Path | None = None,
         seeds: int = 3, task: str = "auto", horizon: int | None = None, context: int | None = None,
         progress: bool = True) -> dict[str, Any]:
    """Say what a run will take, from 20 real steps in a process of their own, with weights that are thrown away.

    With ``recipes``, ``budget``, ``train``, ``test`` or ``task`` it plans a tournament (:func:`osteon.compare`)
    instead.

    Args:
        source, objective, backbone, steps, epochs, batch_size, accumulate, precision, seed, settings, config, init,
            guard: as in :func:`osteon.pretrain`.
        memory: most memory a run may take, e.g. ``4GB``; by default what is free now.
        largest: also find the largest batch that fits.
        recipes, budget, train, test, seeds, task, horizon, context: as in :func:`osteon.compare`.
        progress: tell what goes on.

    Returns:
        For a run: ``data`` (see :func:`osteon.verbs._plan_data.check_data`), ``run`` (settings), ``time`` (seconds:
        ``start``, ``step``, ``steps``, ``saves``, ``guard``, ``finish``, ``total``), ``memory`` (bytes: ``peak``,
        ``limit``, ``fits``), ``flop`` (of a step by share, and ``run``), ``batch`` (the largest that fits), ``notes``
        (every automatic choice with its rule) and ``warnings``. For a tournament: ``data``, ``arms``, ``time``,
        ``notes`` and ``warnings``.

    Raises:
        UsageError, DataError: what the run itself would raise.
        ProbeKilled: memory does not suffice even for the probe.
    """
    say = speaker(progress)
    arguments: dict[str, Any] = {
        "source": str(source), "objective": objective, "backbone": backbone, "steps": steps, "epochs": epochs,
        "batch_size": batch_size, "accumulate": accumulate, "precision": precision, "seed": seed,
        "settings": dict(settings or {}), "config": config, "init": init, "guard": guard}
    if any(given is not None for given in (recipes, budget, train, test, horizon, context)) or task != "auto":
        given = [k for k, v in arguments.items() if v and k not in ("source", "settings")]
        if given:
            raise UsageError(f"'{given[0]}' is of one run, and recipes, budget, train, test or task are of a "
                             "tournament.", where="plan",
                             fix="Plan one of the two; settings of all recipes go through --set.")
        if task != "forecast" and (train is None or test is None):
            raise UsageError("A tournament needs labelled data to judge by.", where="plan",
                             fix="Give --train and --test.")
        from osteon.verbs._plan_compare import plan_compare

        return plan_compare(source, train=train, test=test, recipes=recipes or "auto", budget=budget or "2000steps",
                            seeds=seeds, settings=settings, task=task, horizon=horizon, context=context, say=say)
    limit, whose = free_memory() if memory is None else (read_memory(memory), "as asked")
    say(f"probing {PROBE_STEPS} steps")
    found = probe(arguments, steps=PROBE_STEPS)
    say("looking at the data")
    data, warnings = check_data(open_mixed(found.config["source"], **opening(found.config["data"])))
    result: dict[str, Any] = {
        "data": data, "run": {k: found.config[k] for k in ("source", "objective", "backbone", "init", "train")}
        | found.facts, "time": _time(found), "memory": _memory(found, limit, whose), "flop": _flop(found),
        "notes": found.notes, "warnings": [*warnings, *_warnings(found, limit)]}
    if largest:
        say("searching the largest batch that fits")
        result["batch"] = largest_batch(arguments, found, limit, data["samples"], say)
    return dict(plain(result, finite=True))


def _time(found: Probe) -> dict[str, float]:
    """Seconds of the whole run by what they go to."""
    training = found.config["train"]
    saves = max(1, -(-training["steps"] // training["checkpoint_every"])) + found.facts["guard_looks"]
    parts = {"start": found.start, "step": found.step, "steps": found.step * training["steps"],
             "saves": found.save * saves, "guard": found.look * found.facts["guard_looks"], "finish": found.finish}
    return {**parts, "total": sum(v for k, v in parts.items() if k != "step")}


def _memory(found: Probe, limit: int, whose: str) -> dict[str, Any]:
    peak = found.memory + found.unread
    return {"peak": peak, "limit": limit, "limit_is": whose, "fits": peak <= limit,
            "of": "the GPU's allocator" if "cuda" in found.facts["device"] else "this process, mapped image files "
                  "included"}


def _flop(found: Probe) -> dict[str, float]:
    return {**found.flop, "run": found.flop["total"] * found.config["train"]["steps"]}


def _warnings(found: Probe, limit: int) -> list[str]:
    training, samples = found.config["train"], found.facts["samples"]
    passes = training["steps"] * training["batch_size"] / samples
    lines = []
    if passes < FEW_EPOCHS:
        lines.append(f"{training['steps']} steps are {passes:.1f} passes over the data; objectives are made for "
                     f"{FEW_EPOCHS} and more")
    if training["steps"] < FEW_STEPS:
        lines.append(f"{training['steps']} steps are few: a rising and falling learning rate wants {FEW_STEPS} or more")
    if training["batch_size"] * 4 > samples:
        lines.append(f"a batch holds more than a quarter of the {samples} images: all steps see nearly the same")
    if found.memory + found.unread > limit:
        lines.append("the run does not fit into memory: lower --batch-size, or split it with --accumulate")
    if found.facts["device"] == "cpu" and found.facts["parameters"] > 30_000_000:
        lines.append(f"{found.facts['parameters'] / 1e6:.0f} million parameters on a CPU: a smaller --backbone sees "
                     "more of the data in the same time")
    return lines


def text(result: Mapping[str, Any]) -> str:
    """The plan as a page for a terminal."""
    from osteon.verbs._plan_page import compare_page, run_page

    return compare_page(result) if "arms" in result else run_page(result)
