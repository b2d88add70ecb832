"""Images in memory or memory-mapped, with what is known about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data.listing import Skipped, digest, raw_bytes
from osteon.data.splits import class_weights
from osteon.modalities._measure import measure, scale_of
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.data.mixture import Mixture


@dataclass
class Dataset:
    """Decoded images of one size with their ids, labels, and statistics measured from them.

    Args:
        images: (N, C, S, S) uint8, uint16 or float32, usually memory-mapped and read-only.
        ids: one unique name an image.
        source: where they come from, as given by the user.
        fingerprint: digest of pixels, ids and labels; the same wherever the source lies.
        spec: channels, size and statistics, for objectives and views.
        labels: (N,) int64, or (N, K) uint8 where an image may have several labels, or None.
        class_names: K names, in the order of the label numbers; empty when unlabelled.
        targets: (N,) float64 numbers to be predicted, in their own unit, in the place of labels; or None.
        groups: images of one group belong on one side of any split; or None.
        split: part of the source each image belongs to; or None.
        skipped: what could not be used, with reasons.
        notes: every automatic choice with its rule, to be printed.
        mixture: which rows each step takes, where several sources are mixed.
    """

    images: np.ndarray
    ids: list[str]
    source: str
    fingerprint: str
    spec: DataSpec
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    split: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mixture: Mixture | None = None
    targets: np.ndarray | None = None

    @property
    def modality(self) -> str:
        """What the samples are, e.g. ``"image"``: the key of a batch."""
        return self.spec.modality

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray | None = None, *, class_names: Sequence[str] = (),
                    source: str = "arrays") -> Dataset:
        """A dataset from arrays in memory, with measured statistics.

        Args:
            images: (N, C, S, S) uint8, uint16 or float32.
            labels: (N,) class numbers, (N, K) 0/1, or None.
            class_names: K names; the numbers when empty.
            source: what to call it.
        """
        if images.ndim != 4 or images.shape[2] != images.shape[3] or not len(images):
            raise UsageError(f"Images of shape {images.shape} are not (N, C, S, S) with N >= 1.", where=source,
                             fix="Crop them square and put the channels second.")
        if labels is not None:
            labels = np.ascontiguousarray(labels, np.int64 if np.ndim(labels) == 1 else np.uint8)
            if len(labels) != len(images):
                raise UsageError(f"There are {len(images)} images but {len(labels)} labels.", where=source,
                                 fix="Give one label an image.")
            count = (int(labels.max()) + 1) if labels.ndim == 1 else labels.shape[1]
            class_names = list(class_names) or [str(i) for i in range(count)]
        scale = scale_of(images.dtype)
        mean, std = measure(images, scale)
        notes: list[str] = []
        spec = make_spec(images, labels, list(class_names), (mean, std, scale), notes)
        ids = [f"{i:07d}" for i in range(len(images))]
        pixels = hashlib.blake2b(raw_bytes(images), digest_size=16).hexdigest()
        marks = "" if labels is None else labels.tobytes().hex()
        mark = digest(images.shape, images.dtype, pixels, marks, *class_names)
        return cls(images, ids, source, mark, spec, labels, list(class_names), notes=notes)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        """Samples ``index`` as tensors: the modality (B, C, *extent), ``index`` (B,) int64 and, if there, ``label``
        or ``target`` (B,) float32.

        Values are as stored; uint16 comes as float32 with the same values, because torch computes little with uint16.
        """
        rows = np.asarray(index, dtype=np.int64).reshape(-1)
        pixels = np.ascontiguousarray(self.images[rows])
        if pixels.dtype == np.uint16:
            pixels = pixels.astype(np.float32)
        out = {self.modality: torch.from_numpy(pixels), "index": torch.from_numpy(rows.copy())}
        if self.labels is not None:
            out["label"] = torch.from_numpy(self.labels[rows])
        if self.targets is not None:
            out["target"] = torch.from_numpy(self.targets[rows].astype(np.float32))
        return out

    def subset(self, index: Sequence[int] | np.ndarray) -> Dataset:
        """The images numbered ``index``, in that order.

        Statistics stay those of the whole, so that a part is normalised like the whole; class weights are counted anew.
        A run of neighbours shares memory, anything else is copied.
        """
        rows = np.asarray(index, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise UsageError(f"An index lies outside 0..{len(self) - 1}.", where=self.source,
                             fix="Choose existing images.")
        run = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        images = self.images[int(rows[0]):int(rows[-1]) + 1] if run else self.images[rows]
        labels = None if self.labels is None else self.labels[rows]
        weights = class_weights(labels, len(self.class_names)) if labels is not None and len(rows) else ()

        def pick(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[i] for i in rows]

        return replace(self, images=images, ids=[self.ids[i] for i in rows], labels=labels, groups=pick(self.groups),
                       split=pick(self.split), skipped=[], notes=list(self.notes), mixture=None,
                       targets=None if self.targets is None else self.targets[rows],
                       fingerprint=digest(self.fingerprint, rows.tobytes().hex()),
                       spec=replace(self.spec, class_weights=weights))

    def with_classes(self, class_names: Sequence[str]) -> Dataset:
        """The same images with labels numbered as in ``class_names``: for test data whose source lacks some classes."""
        names = list(class_names)
        if self.labels is None or names == self.class_names:
            return self
        used = [name for name, count in zip(self.class_names, self._counts(), strict=True) if count]
        unknown = [name for name in used if name not in names]
        if unknown:
            raise DataError(f"Class '{unknown[0]}' does not occur in the training data.", where=self.source,
                            fix=f"Its classes are: {', '.join(names[:20])}.{nearest(unknown[0], names)}")
        if self.labels.ndim == 1:
            number = np.array([names.index(name) if name in names else -1 for name in self.class_names], np.int64)
            labels = number[self.labels]
        else:
            labels = np.zeros((len(self), len(names)), np.uint8)
            for column, name in enumerate(self.class_names):
                if name in names:
                    labels[:, names.index(name)] = self.labels[:, column]
        spec = replace(self.spec, num_classes=len(names), class_weights=class_weights(labels, len(names)))
        return replace(self, labels=labels, class_names=names, spec=spec,
                       fingerprint=digest(self.fingerprint, *names))

    def _counts(self) -> np.ndarray:
        assert self.labels is not None
        if self.labels.ndim == 2:
            return self.labels.sum(0)
        return np.bincount(self.labels, minlength=len(self.class_names))


def make_spec(samples: np.ndarray, labels: np.ndarray | None, class_names: list[str],
              measured: tuple[Sequence[float], Sequence[float], float], notes: list[str], *, modality: str = "image",
              traits: Mapping[str, Any] | None = None) -> DataSpec:
    """The DataSpec of measured samples; a constant channel gets the deviation 1, so that nothing divides by 0.

    Args:
        samples: as stored.
        labels: class numbers or None.
        class_names: K names.
        measured: mean and deviation of each channel after division by the scale, and the scale.
        notes: told of constant channels.
        modality: what the samples are.
        traits: what the modality knows of them.
    """
    mean, std, scale = measured
    flat = [c for c, value in enumerate(std) if value < 1e-8]
    if flat:
        notes.append(f"statistics: channel {', '.join(map(str, flat))} is constant; its deviation is taken as 1")
    extent = tuple(samples.shape[2:])
    square = len(extent) == 2 and extent[0] == extent[1]
    return DataSpec(modality, samples.shape[1], max(extent), tuple(mean),
                    tuple(1.0 if c in flat else value for c, value in enumerate(std)), scale,
                    len(class_names), labels is not None and labels.ndim == 2,
                    class_weights(labels, len(class_names)) if labels is not None else (),
                    () if square else extent, dict(traits or {}))
