"""``osteon staged``: pre-training in stages, each from the weights of the last, and the same compute in one stage.

Singh et al. 2023, "The effectiveness of MAE pre-pretraining for billion-scale pretraining", arXiv:2303.13496, section 3
and its comparison at equal compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osteon.core import registry
from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.data import Loader
from osteon.parts.flops import count_run
from osteon.train.loop import Engine, make_fabric
from osteon.verbs._alone import alone_in
from osteon.verbs.pretrain import prepare, pretrain, speaker


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        objective: what it learns.
        steps: optimiser steps.
        settings: as ``--set``.
    """

    objective: str
    steps: int
    settings: Mapping[str, Any]


@alone_in("out")
def staged(source: str | Path, *, stages: Sequence[str | Stage], out: str | Path, backbone: str | None = None,
           batch_size: int | None = None, seed: int | None = None, settings: Mapping[str, Any] | None = None,
           control: bool = True, progress: bool = True) -> dict[str, Any]:
    """Pre-train in stages, and once more with the last objective alone for as many operations as all stages took.

    Whether stages pay shows when ``osteon evaluate`` compares the last stage's run with the control's; more steps alone
    also help, so that comparing with the last stage alone would prove nothing. Every stage starts from the weights the
    one before left, with a fresh head or decoder. The same call resumes.

    Args:
        source: as in :func:`osteon.pretrain`; both arms see the same images.
        stages: two or more of ``OBJECTIVE:STEPS``, e.g. ``mae:500``, or :class:`Stage` with settings of its own.
        out: folder for the runs ``1-OBJECTIVE``, ``2-OBJECTIVE``..., ``control-OBJECTIVE`` and ``staged.json``.
        backbone: of all of them; it must suit every stage.
        batch_size: samples a step, in every stage.
        seed: key of all randomness.
        settings: for every stage.
        control: also run the control.
        progress: tell what goes on.

    Returns:
        ``stages`` (``run``, ``objective``, ``steps``, ``flop_step``, ``flop``), ``control`` (the same, or None),
        ``flop`` (of all stages) and ``off`` (share by which the control's compute departs from it).

    Raises:
        UsageError: fewer than two stages, or one that cannot be read.
    """
    say, root = speaker(progress), Path(out)
    plan = [_read(stage) for stage in stages]
    if len(plan) < 2:
        raise UsageError("Stages are two or more.", where="--stages", fix="Write e.g. mae:500,supervised:500.")
    for stage in plan:
        registry.find("objective", stage.objective)
    common = {"backbone": backbone, "batch_size": batch_size, "seed": seed}
    done: list[dict[str, Any]] = []
    for number, stage in enumerate(plan, 1):
        # The features are meant to become others' from stage to stage: the guard of continuing would object.
        chosen = {**({"guard": False} if done else {}), **dict(settings or {}), **stage.settings}
        arguments = {**common, "objective": stage.objective, "steps": stage.steps, "settings": chosen,
                     "init": done[-1]["run"] if done else None}
        if done:
            arguments["backbone"] = None
        done.append(_run(source, root / f"{number}-{stage.objective}", arguments, progress, say))
    total = sum(row["flop"] for row in done)
    result: dict[str, Any] = {"stages": done, "flop": total, "control": None, "off": None}
    if control:
        last = plan[-1]
        steps = max(1, round(total / done[-1]["flop_step"]))
        made = _run(source, root / f"control-{last.objective}", {
            **common, "objective": last.objective, "steps": steps, "settings": {**dict(settings or {}),
                                                                                **last.settings}, "init": None},
            progress, say)
        result |= {"control": made, "off": made["flop"] / total - 1}
    write_text(root / "staged.json", json.dumps(result, indent=2) + "\n")
    return result


def _read(stage: str | Stage) -> Stage:
    if isinstance(stage, Stage):
        return stage
    name, colon, steps = str(stage).partition(":")
    if not colon or not steps.strip().isdigit() or int(steps) < 1:
        raise UsageError(f"'{stage}' is no stage.", where="--stages", fix="Write OBJECTIVE:STEPS, e.g. mae:500.")
    return Stage(name.strip(), int(steps), {})


def _run(source: str | Path, folder: Path, arguments: Mapping[str, Any], progress: bool,
         say: Callable[[str], None]) -> dict[str, Any]:
    """Count what a step costs, do the run, and say what it came to."""
    flop, steps = count_pretraining(source, arguments)
    say(f"{folder.name}: {steps} steps of {flop:.3g} FLOP")
    pretrain(source, out=folder, progress=progress, report=False, **arguments)
    return {"run": str(folder), "objective": arguments["objective"], "steps": steps, "flop_step": flop,
            "flop": flop * steps}


def count_pretraining(source: str | Path, arguments: Mapping[str, Any]) -> tuple[float, int]:
    """Floating-point operations of the mean step of a run, and its steps; ``arguments`` are those of pretrain."""
    made = prepare(source, epochs=None, accumulate=None, precision=None, config=None, guard=None, say=_mute,
                   **arguments)
    fabric, training = make_fabric(made.training.precision), made.training
    method = made.method.to(fabric.device).train()
    batch = Loader(made.dataset, training.batch_size, training.seed).at(0)
    flop = count_run(Engine(method, training, fabric), {k: v.to(fabric.device) for k, v in batch.items()},
                     training.steps, training.seed).total
    return flop, training.steps


def _mute(_text: str) -> None:
    """Say nothing: the run itself will."""
