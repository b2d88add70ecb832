"""Opening what is to be merged: backbones of runs, or classifiers, each left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.tensorfile import write_tensors
from osteon.parts.state_algebra import StateFile, check_fit
from osteon.verbs._adapt_store import DELTA, load_adapted, reopen

#: the adapter whose delta holds a whole classifier
WHOLE = "full"


def open_members(runs: Sequence[str | Path], base: str | Path | None, scratch: Path,
                 notes: list[str]) -> tuple[list[StateFile], StateFile | None]:
    """Models and base, checked against each other before any tensor is combined.

    Args:
        runs: run folders, all of backbones or all of classifiers (adapted runs).
        base: run folder of what they were fine-tuned from; None takes what adapted runs say themselves, if it is a run.
        scratch: folder for classifiers whose small delta has to be written out as whole weights first.
        notes: lines for the user are added here.

    Raises:
        UsageError: what does not fit, naming the tensor.
        DataError: a folder without a finished model, or a damaged file.
    """
    paths = [Path(r) for r in runs]
    adapted = [(p / DELTA).is_file() for p in paths]
    if any(adapted) and not all(adapted):
        plain, other = paths[adapted.index(False)], paths[adapted.index(True)]
        raise UsageError(f"{plain.name} is a backbone and {other.name} a classifier.", where=f"{plain} and {other}",
                         fix="Merge runs of one kind.")
    if not adapted[0]:
        members = [StateFile(p) for p in paths]
        start = None if base is None else StateFile(base)
    else:
        members = [_classifier(p, i, scratch, notes) for i, p in enumerate(paths)]
        start = _base_of(members, base)
    check_fit(members, start)
    for model in members:
        model.verify()
    if start is not None:
        start.verify()
        wanted = (members[0].meta.get("base") or {}).get("fingerprint")
        if wanted is not None and start.fingerprint() != wanted:
            raise UsageError(f"The models were not adapted from {start.label}: its fingerprint differs.",
                             where=str(start.path), fix="Give the run they were adapted from as --base, or none.")
    return members, start


def _classifier(path: Path, number: int, scratch: Path, notes: list[str]) -> StateFile:
    """A classifier as whole weights: the delta of full fine-tuning as it is, any other merged and written out."""
    stored = StateFile(path / DELTA, label=path.name)
    name = stored.meta["adapter"]["name"]
    if name == WHOLE:
        return stored
    trained = load_adapted(path)
    adapter = trained.adapter
    assert adapter is not None
    if not adapter.mergeable:
        raise UsageError(f"{path.name} holds {name}, which works beside its backbone: there are no weights to merge.",
                         where=str(path), fix="Merge runs of adapters that rewrite weights.")
    whole = registry.build("adapter", WHOLE, reopen(stored.meta["base"]).backbone, trained.spec)
    whole.backbone.load_state_dict(trained.backbone.state_dict())
    whole.head.load_state_dict(adapter.head.state_dict())
    file = scratch / f"{number}.safetensors"
    write_tensors(file, whole.delta(), {**stored.meta, "adapter": {"name": WHOLE, "options": {}}})
    notes.append(f"{path.name}: its {name} was written into the weights first")
    return StateFile(file, label=path.name)


def _base_of(members: Sequence[StateFile], base: str | Path | None) -> StateFile | None:
    known = (members[0].meta.get("base") or {}).get("run")
    path = Path(base) if base is not None else None if known is None else Path(known)
    if path is None or not (path / "model.safetensors").is_file():
        if base is not None:
            raise UsageError("The base of classifiers is the run they were adapted from.", where=f"--base {base}",
                             fix="Give the folder of a finished pre-training run.")
        return None
    return StateFile(path, prefix="backbone.")


