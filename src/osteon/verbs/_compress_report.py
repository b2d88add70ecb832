"""What a compression came to: costs and accuracy of the networks before and after, beside a control."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.parts.compressor import amount, measure, milliseconds
from osteon.parts.intervals import score_intervals
from osteon.parts.types import DataSpec
from osteon.verbs._adapt_cost import SavedBytes
from osteon.verbs._model import extract

#: what reads the features, frozen
READERS = ("knn", "linear_probe")
#: samples whose kept activations are counted
KEPT_BATCH = 16


def measure_row(name: str, network: Backbone, train: Dataset | None, test: Dataset | None, spec: DataSpec,
                seed: int) -> dict[str, Any]:
    """Everything the table says of one network; accuracy where there are labels."""
    cost = measure(network)
    row: dict[str, Any] = {
        "name": name, "params": cost.params, "flops": cost.flops, "bytes": cost.bytes,
        "saved_bytes": kept_bytes(network)}
    if train is not None and test is not None:
        row["scores"] = scores(network, train, test, spec, seed)
    return row


def add_latencies(rows: Sequence[dict[str, Any]], networks: Sequence[Backbone]) -> None:
    """Median milliseconds of a forward pass at batch 1 and 64; the networks take turns, so that all see one machine."""
    for batch, times in ((1, 15), (64, 5)):
        turns = [[milliseconds(n, batch, times=1) for n in networks] for _ in range(times)]
        for row, values in zip(rows, zip(*turns, strict=True), strict=True):
            row[f"latency_{batch}_ms"] = statistics.median(values)


def kept_bytes(network: Backbone) -> int:
    """Bytes that training on a batch of :data:`KEPT_BATCH` samples would keep for the backward pass."""
    trial = copy.deepcopy(network).train()
    for parameter in trial.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with SavedBytes(trial) as kept:
        trial(trial.example(KEPT_BATCH))
        return kept.total


def scores(network: Backbone, train: Dataset, test: Dataset, spec: DataSpec, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of each reader on the held-out samples with a 95 % interval over them."""
    assert train.labels is not None and test.labels is not None
    classes = len(train.class_names) or train.spec.num_classes
    features = [extract(network, d, spec) for d in (train, test)]
    y = np.asarray(test.labels)
    metric = "mean_average_precision" if y.ndim == 2 else "accuracy"
    found = {}
    for reader in READERS:
        guess = registry.build("evaluator", reader)(features[0], np.asarray(train.labels), features[1],
                                                    classes=classes, seed=seed)
        interval = score_intervals([guess], y, classes)[metric]
        found[reader] = {"value": float(interval.mean), "low": float(interval.low), "high": float(interval.high)}
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, costs also as shares of the first row's."""
    heads = ["", "parameters", "FLOPs", "file", "kept activations", "ms at 1", "ms at 64"]
    readers = list(rows[0].get("scores", {}))
    lines = [[*heads, *readers]]
    first = rows[0]
    for row in rows:
        cells = [str(row["name"])]
        for key, unit in (("params", "params"), ("flops", "flops"), ("bytes", "bytes"), ("saved_bytes", "bytes")):
            share = "" if row is first else f" ({100 * row[key] / max(1, first[key]):.3g} %)"
            cells.append(amount(unit, row[key]) + share)
        cells += [f"{row['latency_1_ms']:.2f}", f"{row['latency_64_ms']:.1f}"]
        for reader in readers:
            s = row["scores"][reader]
            cells.append(f"{100 * s['value']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines)
