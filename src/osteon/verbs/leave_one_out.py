"""What each source of a mixture is worth: the last phase again without it, from one checkpoint.

Blakeney et al. 2024, arXiv:2406.03476: a fraction of the compute of whole runs, one a source.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.core.plain import to_yaml
from osteon.core.run import RunFolder
from osteon.data.mixture import read_shares
from osteon.verbs._alone import alone_in
from osteon.verbs.pretrain import lasting, pretrain


@alone_in("out")
def leave_one_out(source: str | Path, *, upsample: Any, out: str | Path, steps: int,
                  judge: Callable[[Path], Mapping[str, float]], mix: Any = None, switch: float = 0.85,
                  settings: Mapping[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """Pre-train to the switch once, then go through the last phase with all sources, without each one, and unchanged.

    Every branch goes on from the same checkpoint: weights, optimiser, schedule and place in the data. A source that is
    left out leaves its share to the first one. The branch in which no share changes tells what more steps and the
    falling learning rate do by themselves.

    Args:
        source: the first source.
        upsample: shares of the others in the last phase, as in :func:`osteon.data.mixture.open_mixed`.
        out: folder for the runs ``all``, ``unchanged``, ``without-1``... and ``leave_one_out.json``; the same call
            goes on where it stopped.
        steps: of a whole run.
        judge: scores of a finished run by name, on data that no branch trains on.
        mix: shares before the switch.
        switch: share of the steps before the last phase.
        settings: as in :func:`osteon.pretrain`.
        arguments: others of :func:`osteon.pretrain`.

    Returns:
        A row a branch: ``branch``, ``left_out`` (None, or the source), ``run``, and the scores.

    Raises:
        UsageError: no source to leave out, or a switch that leaves no phase.
    """
    late, root, at = read_shares(upsample, "upsample"), Path(out), round(switch * steps)
    if not late or not 0 < at < steps:
        raise UsageError("There is no source to leave out of a last phase.", where="upsample",
                         fix="Name sources in upsample, and a switch between the first step and the last.")
    early = {name: float(share) for name, share in read_shares(mix, "mix").items()}
    shares = {name: float(share) for name, share in late.items()}
    fixed = {**arguments, "steps": steps, "report": False}
    chosen = {**dict(settings or {}), "mix": early, "switch": switch}
    branches: list[tuple[str, str | None, dict[str, float]]] = [
        ("all", None, shares), ("unchanged", None, {name: early.get(name, 0.0) for name in shares}),
        *((f"without-{n}", name, {**shares, name: 0.0}) for n, name in enumerate(shares, 1))]
    trunk = root / "trunk"
    pretrain(source, out=trunk, until=at, settings={**chosen, "upsample": shares}, **fixed)
    rows = []
    for branch, left_out, wanted in branches:
        folder = root / branch
        if not (folder / "config.yaml").exists():
            _branch(trunk, folder, {lasting(name): share for name, share in wanted.items()})
        pretrain(source, out=folder, settings={**chosen, "upsample": wanted}, **fixed)
        rows.append({"branch": branch, "left_out": left_out, "run": str(folder), **judge(folder)})
    write_text(root / "leave_one_out.json", json.dumps(rows, indent=2) + "\n")
    return rows


def _branch(trunk: Path, folder: Path, shares: Mapping[str, float]) -> None:
    """A copy of a paused run that goes on with other shares; complete, or not there at all."""
    half = folder.with_name(folder.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(trunk, half, ignore=shutil.ignore_patterns("lock"))
    config = RunFolder(half).config()
    config["data"]["upsample"] = dict(shares)
    write_text(half / "config.yaml", to_yaml(config))
    half.rename(folder)
