"""What is to be known about a source before compute is spent on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from osteon.data import Dataset, find_duplicates
from osteon.data.listing import raw_bytes
from osteon.modalities import find

#: images in each half of the sample in which near copies are searched for
HALF = 2000
#: ratio of the largest class to the smallest that is worth a warning, and fewest images of a class
SKEWED, SCARCE = 10.0, 10
#: sides below which an image says little
TINY = 16
_BLOCK = 2048


def check_data(data: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Facts about a source and what deserves attention.

    Returns:
        ``samples``, ``channels``, ``size``, ``mean``, ``std``, ``skipped`` (number by reason), ``constant`` (images of
        one value), ``exact_copies`` (images identical to an earlier one), ``near_copies`` (``found`` among ``searched``
        images of one random half, compared with another) and, with labels, ``classes`` (images a class); and warnings.
    """
    facts: dict[str, Any] = {
        "samples": len(data), "channels": data.spec.channels, "size": data.spec.size,
        "mean": [round(v, 4) for v in data.spec.mean], "std": [round(v, 4) for v in data.spec.std],
        "skipped": dict(Counter(s.reason for s in data.skipped)), **_one_by_one(data), "near_copies": _near(data)}
    if data.labels is not None:
        counts = np.bincount(data.labels[data.labels >= 0], minlength=len(data.class_names)) \
            if data.labels.ndim == 1 else data.labels.sum(0)
        facts["classes"] = {name: int(n) for name, n in zip(data.class_names, counts, strict=True)}
    return facts, _warnings(facts, find(data.modality).SAMPLES)


def _one_by_one(data: Dataset) -> dict[str, int]:
    """Constant images and exact copies, in one pass."""
    seen: set[bytes] = set()
    constant = copies = 0
    for start in range(0, len(data), _BLOCK):
        block = np.asarray(data.images[start:start + _BLOCK])
        flat = block.reshape(len(block), -1)
        constant += int((flat.min(1) == flat.max(1)).sum())
        for image in block:
            mark = hashlib.blake2b(raw_bytes(image), digest_size=16).digest()
            copies += mark in seen
            seen.add(mark)
    return {"constant": constant, "exact_copies": copies}


def _near(data: Dataset) -> dict[str, int]:
    """Near copies between two random halves of a sample: at least so many, since pairs within a half are not seen."""
    order = np.random.default_rng(0).permutation(len(data))[:2 * HALF]
    half = len(order) // 2
    if half == 0:
        return {"found": 0, "searched": 0}
    one, other = data.subset(np.sort(order[:half])), data.subset(np.sort(order[half:2 * half]))
    return {"found": len(find_duplicates(one, other).near), "searched": half}


def _warnings(facts: dict[str, Any], samples: str) -> list[str]:
    total, lines = facts["samples"], []
    skipped = sum(facts["skipped"].values())
    if skipped:
        lines.append(f"{skipped} files cannot be used: "
                     + "; ".join(f"{n} x {reason}" for reason, n in sorted(facts["skipped"].items())[:3]))
    if facts["constant"]:
        lines.append(f"{facts['constant']} {samples} have one value everywhere: nothing can be learned from them")
    if facts["exact_copies"]:
        lines.append(f"{facts['exact_copies']} of {total} {samples} are exact copies of others: objectives that tell "
                     f"{samples} apart are taught a contradiction")
    near = facts["near_copies"]
    if near["found"]:
        lines.append(f"at least {near['found']} of {near['searched']} {samples} looked at have near copies: keep them "
                     "on one side of any split (a 'group' column does)")
    if samples == "images" and facts["size"] < TINY:
        lines.append(f"images of {facts['size']} pixels are tiny: crops and blurs leave little of them")
    classes = facts.get("classes")
    if classes:
        few, many = min(classes.values()), max(classes.values())
        if many > SKEWED * max(1, few):
            lines.append(f"classes are skewed: {max(classes, key=classes.get)} has {many} {samples}, "
                         f"{min(classes, key=classes.get)} {few}; read balanced accuracy, not accuracy")
        scarce = [name for name, n in classes.items() if n < SCARCE]
        if scarce:
            lines.append(f"{len(scarce)} classes have fewer than {SCARCE} {samples}, e.g. {scarce[0]}: scores of them "
                         "are mostly chance")
    return lines
