"""Claim 126 (CLIP): spoken words of people never heard before name images of digits."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from benchmarks.claims.kit import DATA, Record, fit, spread
from osteon.backbones import build_backbone
from osteon.backbones.towers import Towers
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.modalities import find
from osteon.parts.members import Members
from osteon.parts.retrieval import class_means, nearest_rows
from osteon.verbs.match import embed_members

SEEDS, BATCH, UNSEEN = 2, 128, ("theo", "yweweler")


def run(quick: bool = False) -> Record:
    """Train on four speakers; name test images by the mean vectors of what two others say."""
    record = Record(
        126,
        "CLIP aligns two modalities so that class names classify images with no labelled image (zero-shot ImageNet = "
        "supervised ResNet-50).",
        "sklearn digits images x free-spoken-digit wavs paired by class (weak supervision stated); two small encoders, "
        "2 min, train speakers 4 of 6, test speakers unseen.",
        "Zero-shot >= 85% with unseen speakers' audio as prototypes; retrieval class-match@1 >= 70%. Pairing uses "
        "class identity, so this demonstrates the tool, not label-free learning.")
    with tempfile.TemporaryDirectory() as folder:
        known, unseen = manifests(Path(folder), quick)
        train = open_source(known, cache=False)
        test = open_source(unseen, like=train.spec, cache=False)
    assert test.labels is not None
    members = Members.of(train.spec.traits)
    record.say(f"{len(train)} pairs of {len(members)} members: an image of the training part and what one of four "
               f"speakers says; {len(test)} pairs of test images and two other speakers ({', '.join(UNSEEN)}), each "
               "image and each recording once; options and recipe are the defaults")
    zero, matched, words, untrained = list[float](), list[float](), list[float](), list[float]()
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        towers = cast(Towers, build_backbone("towers", channels=1, size=train.spec.extent,
                                             encoder="resnet_tiny", **find("several").backbone_options(train.spec)))
        method = registry.build("objective", "clip", towers, train.spec)
        untrained.append(zero_shot(*embed_members(towers, test, train.spec), test))
        settings = fit(method, train, steps=3 if quick else 0, minutes=0 if quick else 2, watch=record.say,
                       batch_size=16 if quick else BATCH, seed=seed)
        z, there = embed_members(cast(Towers, method.exported()), test, train.spec)
        zero.append(zero_shot(z, there, test))
        matched.append(class_match(z, test, 0, 1))
        words.append(class_match(z, test, 1, 0))
        record.say(f"seed {seed}: {settings.steps} steps")
    record.say(f"encoders: {towers.options['encoder']}; chance 10.0")
    record.say(f"zero-shot, images by the mean vectors of unseen speakers' words: {spread(zero)}; untrained towers "
               f"{spread(untrained)}")
    record.say(f"the first recording that an image finds is of its class: {spread(matched)}; the first image that a "
               f"recording finds: {spread(words)}")
    record.check(f"zero-shot accuracy is at least 85: {np.mean(zero):.1f}", np.mean(zero) >= 85)
    record.check(f"retrieval of the class at the first place is at least 70: {np.mean(matched):.1f}",
                 np.mean(matched) >= 70)
    return record


def zero_shot(z: np.ndarray, there: np.ndarray, test: Dataset) -> float:
    """Accuracy in per cent of images by the mean vectors of the recordings of every class."""
    labels = np.asarray(test.labels)
    named = class_means(z[there[:, 1], 1], labels[there[:, 1]], len(test.class_names))
    rows = there[:, 0]
    return 100 * float((nearest_rows(z[rows, 0], named)[:, 0] == labels[rows]).mean())


def class_match(z: np.ndarray, test: Dataset, query: int, target: int) -> float:
    """Per cent of the queries of a member whose nearest partner of the other is of their class."""
    labels = np.asarray(test.labels)
    return 100 * float((labels[nearest_rows(z[:, query], z[:, target])[:, 0]] == labels).mean())


def manifests(folder: Path, quick: bool) -> tuple[Path, Path]:
    """Tables of pairs of one class: every recording of the known speakers with an image, and test pairs."""
    rng, digits = np.random.default_rng(0), {part: open_source(f"digits:{part}", cache=False)
                                             for part in ("train", "test")}
    said: dict[bool, list[tuple[str, int, str]]] = {False: [], True: []}
    for part in ("train", "test"):
        where = DATA / "spoken_digits" / part
        with (where / "metadata.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                said[row["speaker"] in UNSEEN].append((str(where / row["file_name"]), int(row["label"]),
                                                       row["speaker"]))
    out = []
    for part, new in (("train", False), ("test", True)):
        data, rows = digits[part], []
        assert data.labels is not None
        for i, image in enumerate(data.images):
            Image.fromarray(image[0]).save(folder / f"{part}-{i}.png")
        for digit in range(10):
            images = rng.permutation(np.flatnonzero(data.labels == digit))
            spoken = [s for s in said[new] if s[1] == digit]
            order = rng.permutation(len(spoken))
            count = 8 if quick else len(spoken) if part == "train" else min(len(images), len(spoken))
            rows += [(f"{part}-{images[k % len(images)]}.png", spoken[order[k]][0], digit, spoken[order[k]][2])
                     for k in range(count)]
        with (folder / f"{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "sound", "label", "speaker"])
            table.writerows(rows)
        out.append(folder / f"{part}.csv")
    return out[0], out[1]
