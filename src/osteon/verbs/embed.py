"""``osteon embed``: write the features of a source to disk, memory-mapped, with ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from osteon.core.atomic import atomic_path, write_text
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.parts.cells import by_names
from osteon.verbs._alone import alone_in
from osteon.verbs._labelled import open_pair
from osteon.verbs._model import extract, load_trained


@alone_in("out")
def embed(run: str | Path, source: str | Path, *, out: str | Path, batch_size: int = 256,
          like: str | Path | None = None) -> Path:
    """Write one feature vector a sample.

    Args:
        run: run folder.
        source: data to embed; resized and normalised as in training.
        out: folder to write: ``features.npy`` (N, D) float32, to be opened with ``mmap_mode="r"``; ``ids.txt``, one
            id a line in the same order (JSON strings, so that any file name fits); ``labels.npy`` where there are
            labels; ``info.json`` with the run, the source's fingerprint and the class names.
        batch_size: samples a forward pass; does not change the result.
        like: of a table with columns that the model has never seen, the rows by which its numbers are standardised;
            by default its own.

    Returns:
        The folder.
    """
    trained = load_trained(run)
    if like is not None and not by_names(trained.spec):
        raise UsageError("Only tables read by names are read like others.", where="--like", fix="Leave it out.")
    dataset = open_source(source, like=trained.spec) if like is None else open_pair(like, source, trained.spec)[1]
    features = extract(trained.backbone, dataset, trained.spec, batch_size=batch_size)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / "features.npy", features)
    if dataset.labels is not None:
        _save(folder / "labels.npy", np.asarray(dataset.labels))
    write_text(folder / "ids.txt", "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in dataset.ids))
    write_text(folder / "info.json", json.dumps({
        "run": str(run), "source": dataset.source, "fingerprint": dataset.fingerprint, "samples": len(dataset),
        "width": int(features.shape[1]), "class_names": dataset.class_names,
        "skipped": [[s.id, s.reason] for s in dataset.skipped], "notes": dataset.notes}, indent=2) + "\n")
    return folder


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
