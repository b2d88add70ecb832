"""Open a source: recognise what it is, decode it once, and hand over a Dataset."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.core.options import coerce
from osteon.data import cache as disk
from osteon.data.arrays import list_arrays, list_hub
from osteon.data.build import Progress, check_skipped, decode_samples, plan_samples
from osteon.data.changes import check, steadily, watch
from osteon.data.codec import check_options, codec, named_sources
from osteon.data.dataset import Dataset, make_spec
from osteon.data.folders import list_folder, one_look, walk
from osteon.data.ids import restrict, split_ids
from osteon.data.listing import Listing, Skipped, digest, encode_labels, raw_bytes, shown, there
from osteon.data.tables import list_csv, list_parquet, parquet_files
from osteon.data.targets import check_task, read_targets, with_column
from osteon.data.tars import find_tars, list_tars
from osteon.modalities import NAMES, find, one_of
from osteon.modalities.image import MAX_PIXELS
from osteon.parts.types import DataSpec

#: What a source may be, for messages.
KINDS = ("a folder of images, recordings, texts or clouds of points, with or without a subfolder a class; a csv or "
         "parquet manifest, tar shards, parquet files, .npy, .npz, .ts, .txt, .jsonl; a csv of a series, of rows or "
         "edges; digits, tones, waves, sentences, mixed, shapes, numbers... or hf:NAME; a part of it as SOURCE:SPLIT, "
         "and the samples of a list as SOURCE@ids.csv")


def open_source(source: str | Path | Dataset, *, size: int | None = None, limit: int | None = None,
                max_skipped: float = 0.01, cache: str | Path | bool | None = None, progress: Progress | None = None,
                like: DataSpec | None = None, modality: str | None = None, task: str = "auto",
                target: str | None = None, **options: Any) -> Dataset:
    """Read a source into a Dataset: everything is decoded once by stated rules and then memory-mapped from a cache.

    Args:
        source: a path, a name, or a Dataset (returned as it is); ``SOURCE:SPLIT`` takes one part, ``SOURCE@ids.csv``
            the samples whose ids a file lists (what ``osteon select`` writes).
        size: side in pixels of the square images; chosen by rule and noted when None.
        limit: use at most so many images, drawn at random (the same ones every time).
        max_skipped: share of unreadable images above which this fails.
        cache: cache folder; None for ``$OSTEON_CACHE`` or ``~/.cache/osteon``; False to keep everything in memory.
        progress: called as ``(done, total, text)``.
        like: deliver the size, channels and depth of this spec, e.g. those a model was trained on.
        modality: what the samples are; by rule and noted when None.
        task: what labels are: ``classes``, numbers to be predicted (``regression``), or ``auto``, by a noted rule.
        target: column of the numbers to be predicted, in the place of labels.
        options: of reading that modality, see :func:`osteon.data.codec.modality_options`.

    Raises:
        DataError: nothing usable, or too much unusable, in the source.
        UsageError: an option that makes no sense.
    """
    if isinstance(source, Dataset):
        return source
    size, limit = (coerce(v, "int | None", name=k, where=k) for k, v in (("size", size), ("limit", limit)))
    max_skipped = coerce(max_skipped, "float", name="max_skipped", where="max_skipped")
    modality = coerce(modality, "str | None", name="modality", where="modality")
    if limit is not None and limit < 1:
        raise UsageError(f"A limit of {limit} images leaves nothing.", where="limit", fix="Choose 1 or more.")
    if not 0 <= max_skipped <= 1:
        raise UsageError(f"max_skipped is a share, not {max_skipped}.", where="max_skipped",
                         fix="Choose 0 to 1, e.g. 0.01.")
    if modality is not None:
        find(modality)
    task = check_task(task, target)
    return steadily(lambda: _open(source, size=size, limit=limit, max_skipped=max_skipped, cache=cache,
                                  progress=progress, like=like, modality=modality, task=task, target=target,
                                  options=options))


def _open(source: str | Path, *, size: int | None, limit: int | None, max_skipped: float,
          cache: str | Path | bool | None, progress: Progress | None, like: DataSpec | None, modality: str | None,
          task: str, target: str | None, options: Mapping[str, Any]) -> Dataset:
    """What :func:`open_source` returns, from the files as they are now."""
    listing = list_source(str(source), modality=modality if like is None else like.modality, options=options, like=like,
                          target=target)
    if target is not None and listing.modality == "table":
        options = {**options, "label": target}
    listing = with_column(listing, target)
    chosen, reader = check_options(listing.modality, {**listing.reading, **options}), codec(listing.modality)
    samples = find(listing.modality).SAMPLES
    notes = list(listing.notes)
    parts = Counter(listing.split or ())
    if len(parts) > 1:
        counts = ", ".join(f"{name or '(none)'} ({count:,})" for name, count in sorted(parts.items()))
        notes.append(f"splits: {counts}; all are used; name one as {source}:{max(parts)}")
    if limit is not None and limit < len(listing.ids):
        keep = np.sort(np.random.default_rng(0).permutation(len(listing.ids))[:limit])
        notes.append(f"limit: {limit:,} of {len(listing.ids):,} {samples} (rule: drawn at random with seed 0)")
        listing = listing.take(keep)
    if not listing.ids:
        raise DataError(f"The source holds no {one_of(samples)}.", where=str(source), fix=f"A source is {KINDS}.")

    def build(sink: Any) -> dict[str, Any]:
        with sink:
            plan, failed, done = plan_samples(listing, reader, sink, size=size, like=like, options=chosen,
                                              progress=progress, max_skipped=max_skipped)
            decode_samples(listing, reader, plan, failed, sink, progress, done)
        if len(failed) == len(listing.ids):
            check_skipped([Skipped(listing.ids[i], reason) for i, reason in failed.items()], 0, 1.0, listing.source,
                          samples)
        samples_read = sink.finish()
        if reader.settle is not None:
            reader.settle(plan, samples_read)
        check()  # before anything is kept in the cache
        return {"failed": [[i, failed[i]] for i in sorted(failed)], "notes": plan.notes,
                "measured": reader.measure(samples_read), "traits": getattr(plan, "traits", {}),
                "content": sink.content()}

    if cache is False or not listing.cached:
        memory = _Memory()
        meta = build(memory)
        images = memory.finish()
    else:
        folder = disk.cache_folder(None if cache is True else cache)
        wanted = None if like is None else (like.extent, like.channels, like.scale, sorted(like.traits.items()))
        key = digest(disk.VERSION, MAX_PIXELS, listing.stamp, digest(*listing.ids), size, limit, wanted,
                     listing.modality, sorted(chosen.items()))
        images, meta = disk.load_or_build(folder, key, lambda path: build(_File(path)), _teller(progress, folder))
        notes.append(f"cache: {images.nbytes / 1e6:,.0f} MB in {folder}")
    return _assemble(listing, images, meta, notes, max_skipped, task)


def _teller(progress: Progress | None, folder: Path) -> Callable[[str], None]:
    """Says, once, which process is decoding the same source while this one waits for it."""
    told: list[str] = []

    def tell(holder: str) -> None:
        if told:
            return
        told.append(holder)
        text = f"waiting for {holder}, which writes the same samples to the cache {folder}"
        if progress:
            progress(0, 1, text)
        else:
            print(f"  {text}", file=sys.stderr, flush=True)

    return tell


def list_source(source: str, *, modality: str | None = None, options: Mapping[str, Any] | None = None,
                like: DataSpec | None = None, target: str | None = None) -> Listing:
    """What a source holds, without decoding anything. Raises DataError when it is not recognised.

    Args:
        source: as given by the user.
        modality: what its samples are; by rule when None.
        options: of reading that modality.
        like: read as the data of this spec.
        target: column of a table that is to be predicted.
    """
    whole, ids = split_ids(source)
    if ids is not None:
        return restrict(list_source(whole, modality=modality, options=options, like=like, target=target), ids,
                        source)
    listing = list_raw(whole, modality, options, like, target)
    if modality == "several" and listing.modality != "several" and like is not None:
        listing = importlib.import_module("osteon.data.several").alone(listing, like)
    cut = getattr(importlib.import_module(f"osteon.data.{listing.modality}"), "cut", None)
    if cut is not None:  # only now, so that nothing is learned from a part that was not asked for
        listing = cut(listing, like=like, options=check_options(listing.modality, options or {}))
    return listing


def list_raw(source: str, modality: str | None = None, options: Mapping[str, Any] | None = None,
             like: DataSpec | None = None, target: str | None = None) -> Listing:
    """The contents of a source as it lies there, before texts are cut; arguments as of :func:`list_source`."""
    with one_look():
        return _list(source, modality, options, like, target)


def _list(source: str, modality: str | None, options: Mapping[str, Any] | None, like: DataSpec | None,
          target: str | None) -> Listing:
    name, split = split_source(source)
    named = {} if there(name) else _named()
    if name in named:
        return named[name](split)
    if name.startswith("hf:"):
        return list_hub(name[3:], split)
    path = Path(os.path.expanduser(name))
    inside = bool(split) and (path / str(split)).is_dir() if there(name) else False
    tars = None if modality == "several" else find_tars(path / str(split) if inside else path, source)
    if tars is not None:
        listing = list_tars(tars, source, modality)
        return listing.only(split) if split and not inside else listing
    if not there(name):
        try:
            beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()]
        except (OSError, ValueError):
            beside = []
        raise DataError(f"There is no file, folder or known source '{shown(source)}'.", where=shown(source) or "SOURCE",
                        fix=f"A source is {KINDS}.{nearest(str(path), [*beside, *_named()])}")
    if path.is_file():
        watch(path)
    elif not path.is_dir():  # opening a pipe would wait for ever
        raise DataError("The source is not a regular file but a pipe, a socket or a device.", where=source,
                        fix=f"A source is {KINDS}.")
    if split and (path / split).is_dir() and not parquet_files(path):
        path, split = path / split, None
    others = sorted(NAMES[1:], key=lambda name: name != "several")  # a manifest of several is none of one
    for name in others if modality is None else (modality,):
        reader = importlib.import_module(f"osteon.data.{name}")
        given = {**(options or {}), "label": target} if name == "table" and target is not None else options
        found = reader.list_path(path, source, asked=modality is not None, options=given, like=like)
        if found is not None:
            return found.only(split) if split else found
    listing = _list_folder(path, source) if path.is_dir() else _list_file(path, source)
    return listing.only(split) if split else listing


def _named() -> dict[str, Callable[[str | None], Listing]]:
    """Sources known by name, of every modality."""
    return {name: lister for modality in NAMES for name, lister in named_sources(modality).items()}


def split_source(source: str) -> tuple[str, str | None]:
    """Name and split of ``NAME[:SPLIT]``; a path that exists as written is never cut."""
    match = re.fullmatch(r"(.+):([A-Za-z0-9_]+)", source, flags=re.DOTALL)
    if match is None or match[1] == "hf" or (not source.startswith("hf:") and there(source)):
        return source, None
    return match[1], match[2]


def _list_folder(path: Path, source: str) -> Listing:
    listing = list_folder(path, source)
    if listing is not None:
        return listing
    found = walk(path, frozenset((".parquet",)))
    if not found.files:
        tables = walk(path, frozenset((".csv", ".tsv"))).files
        raise DataError("The folder holds no image and no parquet file.", where=source, fix=f"A source is {KINDS}." + (
            f" The folder's {len(tables)} csv and tsv files are sources by themselves; --set names=cells pre-trains on "
            "all of them as tables." if tables else ""))
    made = list_parquet([path.joinpath(*parts) for parts, _, _ in found.files], source, path)
    return replace(made, skipped=found.skipped)


def _list_file(path: Path, source: str) -> Listing:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return list_csv(path, source)
    if suffix == ".parquet":
        return list_parquet([path], source, path.parent)
    if suffix in (".npy", ".npz"):
        return list_arrays(path, source)
    raise DataError(f"A file ending in '{suffix}' is not a source of images.", where=source,
                    fix=f"A source is {KINDS}.")


def _assemble(listing: Listing, images: np.ndarray, meta: dict[str, Any], notes: list[str],
              max_skipped: float, task: str) -> Dataset:
    failed = {int(i): str(reason) for i, reason in meta["failed"]}
    skipped = [*listing.skipped, *(Skipped(listing.ids[i], reason) for i, reason in failed.items())]
    samples, rules = find(listing.modality).SAMPLES, codec(listing.modality).rules
    check_skipped(skipped, len(images), max_skipped, listing.source, samples)
    kept = listing.take([i for i in range(len(listing.ids)) if i not in failed]) if failed else listing
    targets, label_notes = read_targets(kept, task)
    labels, names = None, list[str]()
    if targets is None:
        labels, names, label_notes = encode_labels(kept.labels, kept.class_names, kept.ids, kept.source)
    notes = [*notes, *meta["notes"], *label_notes]
    if listing.encoded:
        notes.append(f"decoding: {rules}")
    if skipped:
        notes.append(f"skipped: {len(skipped):,} of {len(images) + len(skipped):,} could not be used; first: "
                     f"{shown(skipped[0].id)} {shown(skipped[0].reason)}")
    if len(images) == 1:
        notes.append(f"{samples}: there is only one; nothing can be learned from it")
    measured = listing.measured or tuple(meta["measured"])
    spec = make_spec(images, labels, names, measured, notes, modality=listing.modality,
                     traits={**listing.traits, **meta["traits"]})
    label_mark = next((part.tobytes().hex() for part in (labels, targets) if part is not None), "")
    fingerprint = digest(meta["content"], images.shape, images.dtype, *kept.ids, label_mark, *names)
    return Dataset(images, kept.ids, listing.source, fingerprint, spec, labels, names, kept.groups, kept.split, skipped,
                   notes, targets=targets)


class _File:
    """Decoded images into a file of the cache."""

    def __init__(self, path: Path) -> None:
        self.path, self.open = path, contextlib.ExitStack()

    def begin(self, shape: tuple[int, ...], dtype: str) -> None:
        self.open.close()
        self.writer = disk.ArrayWriter(self.path, shape, dtype)
        self.open.callback(self.writer.close)
        self.append = self.writer.append

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def finish(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def content(self) -> str:
        return self.writer.hash.hexdigest()


class _Memory:
    """Decoded images into memory."""

    def begin(self, shape: tuple[int, ...], dtype: str) -> None:
        self.images: list[np.ndarray] = []
        self.append = self.images.append
        self.empty = np.empty((0, *shape), dtype)

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.array = np.stack(self.images) if self.images else self.empty

    def finish(self) -> np.ndarray:
        return self.array

    def content(self) -> str:
        return hashlib.blake2b(raw_bytes(self.array), digest_size=16).hexdigest()
