"""Sources that are arrays already, and the two known by name: ``digits`` and a Hugging Face datasets id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, MissingExtra
from osteon.data._archive import BESIDE, Rows, load, members
from osteon.data.changes import stamp
from osteon.data.listing import Listing, RawLabel, digest, there
from osteon.data.splits import train_validation_split
from osteon.modalities import Payload, Unreadable
from osteon.modalities.image import read_header


def list_arrays(path: Path, source: str) -> Listing:
    """An ``.npy`` of images, or an ``.npz`` with ``image`` and, where known, ``label``, ``class_names``, ``group``,
    ``split``.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, uint16 or float. Object arrays (pickles) are refused.
    """
    mark = stamp([path])
    if path.suffix.lower() == ".npy":
        return _from_arrays({"image": load(path, source, mmap_mode="r")}, source, mark)
    with path.open("rb") as file:  # numpy leaves a damaged archive open when it opens it itself
        parts = load(file, source)
        if isinstance(parts, np.ndarray):
            raise DataError("The file is one array and no archive.", where=source, fix="Let its name end in .npy.")
        if "image" not in parts.files:
            raise DataError(f"The archive has no array 'image'; it has: {', '.join(parts.files) or 'nothing'}.",
                            where=source, fix="Save it with np.savez(path, image=..., label=...).")
        arrays = members(parts, [name for name in ("image", *BESIDE) if name in parts.files], source)
    return _from_arrays(arrays, source, mark)


def list_digits(split: str | None) -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey; values 0..16 become round(v * 255 / 16).

    ``train`` and ``test`` are a fixed stratified 70/30 split (seed 0).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)
    train, test = train_validation_split(data.target, 0.3, seed=0)
    parts = np.empty(len(images), object)
    parts[train], parts[test] = "train", "test"
    listing = Listing("digits", [f"digit-{i:04d}" for i in range(len(images))], lambda i: images[i], "digits-1",
                      labels=[int(label) for label in data.target], class_names=[str(i) for i in range(10)],
                      split=list(parts), cached=False, encoded=False)
    return listing.only(split) if split else listing


def list_hub(name: str, split: str | None) -> Listing:
    """A Hugging Face datasets id (or a folder that library reads), with an image column and maybe labels.

    ``NAME@REVISION`` takes a branch, tag or commit; code that lies beside data is never run.
    """
    whole, _, revision = name.partition("@")
    whole, revision = (name, "") if there(name) else (whole, revision)
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", why=f"The source hf:{name}") from error
    try:
        parts = datasets.load_dataset(whole, **({"revision": revision} if revision else {}))
    except Exception as error:  # the library raises its own, requests' and the file system's errors
        raise DataError(f"Hugging Face datasets cannot load '{name}': {error}", where=f"hf:{name}",
                        fix="Check the name, the network and the cache of that library.") from error
    pieces: list[Any] = []
    labels: list[RawLabel] = []
    splits: list[str] = []
    names: list[str] | None = None
    for part, table in parts.items():
        column = next((key for key, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
        if column is None:
            raise DataError(f"'{name}' has no column of images; it has: {', '.join(table.features)}.",
                            where=f"hf:{name}", fix="Choose a data set of images.")
        label = table.features.get("label")
        names = list(label.names) if isinstance(label, datasets.ClassLabel) else names
        labels += [None if v in (None, -1) else v for v in table["label"]] if label is not None else [None] * len(table)
        pieces.append(table.cast_column(column, datasets.Image(decode=False)).select_columns([column]))
        splits += [str(part)] * len(table)
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])

    def payload(row: int) -> Payload:
        piece = int(np.searchsorted(starts, row, side="right")) - 1
        value = next(iter(pieces[piece][row - int(starts[piece])].values()))
        return value["bytes"] or Path(value["path"]) if value else b""

    mark = digest(name, *(piece._fingerprint for piece in pieces))
    ids = [f"{part}:{row - int(start)}" for part, start, stop in zip(parts, starts, starts[1:], strict=False)
           for row in range(int(start), int(stop))]
    commits = {found[1] for table in parts.values() for url in (table.info.download_checksums or {})
               if (found := re.search(r"@([0-9a-f]{40})(?=/)", str(url)))}
    listing = Listing(f"hf:{name}", ids, payload, mark, labels=labels, class_names=names, split=splits,
                      notes=[f"commit: {', '.join(sorted(commits))} of {whole}"] if commits else [])
    return listing.only(split) if split else listing


def _from_arrays(parts: dict[str, np.ndarray], source: str, mark: str) -> Listing:
    images, note = _channels_last(parts["image"], source)
    for name in ("label", "group", "split"):
        if name in parts and len(parts[name]) != len(images):
            raise DataError(f"There are {len(images)} images but {len(parts[name])} entries in '{name}'.", where=source,
                            fix="Save one entry an image.")
    labels: list[RawLabel] | None = None
    names = [str(name) for name in parts["class_names"]] if "class_names" in parts else None
    if "label" in parts:
        labels, names = _labels(parts["label"], names, source)

    def text(name: str) -> list[str] | None:
        return [str(value) for value in parts[name]] if name in parts else None

    rows = Rows(images)
    return Listing(source, [f"{i:07d}" for i in range(len(images))], rows.__getitem__, mark, labels=labels,
                   class_names=names, groups=text("group"), split=text("split"), notes=[note] if note else [],
                   encoded=False)


def _channels_last(images: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise DataError(f"The array of images has shape {images.shape}.", where=source,
                        fix="It is (N, H, W), (N, H, W, C) or (N, C, H, W).")
    note = ""
    if images.shape[1] < images.shape[3]:  # the channel axis is the shorter of the two, the last one when equal
        note = f"array: axis 1 ({images.shape[1]}) is taken for channels (rule: the shorter of the axes 1 and 3)"
        images = images.transpose(0, 2, 3, 1)
    if len(images) and not images.size:
        raise DataError(f"The images have no pixel: the array has shape {images.shape}.", where=source,
                        fix="Save images of at least one pixel and channel.")
    if len(images):
        try:
            read_header(images[0])
        except Unreadable as error:
            raise DataError(f"The array of images {error}.", where=source,
                            fix="Convert it, e.g. images.astype('uint8').") from error
    return images, note


def _labels(labels: np.ndarray, names: list[str] | None, source: str) -> tuple[list[RawLabel], list[str] | None]:
    if labels.ndim == 1 and labels.dtype.kind in "iub":
        return [None if value == -1 else int(value) for value in labels], names
    if labels.ndim == 1 and labels.dtype.kind == "U":
        return [str(value) or None for value in labels], names
    if labels.ndim == 1 and labels.dtype.kind == "f":
        return [float(value) for value in labels], None
    if labels.ndim == 2 and labels.dtype.kind in "iub" and np.isin(labels, (0, 1)).all():
        known: Sequence[str] = names or [str(i) for i in range(labels.shape[1])]
        if len(known) != labels.shape[1]:
            raise DataError(f"There are {labels.shape[1]} columns of labels but {len(known)} class names.",
                            where=source, fix="Save one name a column.")
        return [[int(i) for i in np.flatnonzero(row)] for row in labels], list(known)  # type: ignore[misc]
    raise DataError(f"The labels have shape {labels.shape} and type {labels.dtype}.", where=source,
                    fix="Labels are (N,) class numbers or names, (N, K) of 0 and 1, or (N,) numbers to be predicted.")
