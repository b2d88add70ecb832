"""A made-up evaluation and run folder with every part a report can have, including hostile names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HOSTILE = "<script>alert(1)</script>"


def pictures() -> dict[str, np.ndarray]:
    """Arrays of every kind of picture, drawn from scikit-learn's digits."""
    from sklearn.datasets import load_digits

    from osteon.report.project import project_2d

    digits = load_digits()
    images = (digits.images / 16 * 255).round().astype(np.uint8)[..., None]
    names = np.array([HOSTILE if i == 3 else str(i) for i in range(10)])
    features = digits.data[:900].astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    query = np.array([3, 11, 27, 42])
    near = np.argsort(-(unit[query] @ unit.T), axis=1)[:, 1:8]
    hidden = np.random.default_rng(0).random((8, 8, 8, 1)) < 0.5
    return {"gallery_query": images[query], "gallery_neighbours": images[near],
            "gallery_query_labels": names[digits.target[query]], "gallery_labels": names[digits.target[near]],
            "map_xy": project_2d(features), "map_label": digits.target[:900].astype(np.int64), "class_names": names,
            "recon_input": images[:8], "recon_corrupted": np.where(hidden, 96, images[:8]).astype(np.uint8),
            "recon_output": (images[:8] * 0.8 + 20).astype(np.uint8)}


def evaluation(answer: str = "pays") -> dict[str, Any]:
    """A complete result of an evaluation; the scores are invented."""
    rng = np.random.default_rng(1)
    base = {"simclr": (0.62, 0.86, 0.955), "mae": (0.55, 0.83, 0.948), "spark": (0.57, 0.80, 0.93)}
    controls = {"raw pixels": (0.50, 0.79, 0.939), "untrained backbone": (0.44, 0.72, 0.88)}
    arms: list[dict[str, Any]] = []
    for names, kind in ((base, "pretrained"), (controls, "control")):
        for name, means in names.items():
            for evaluator, shift in (("linear_probe", 0.0), ("knn", -0.02)):
                for budget, mean in zip((10, 100, "all"), means, strict=True):
                    half = {10: 0.045, 100: 0.018, "all": 0.009}[budget] * (1 + 0.3 * rng.random())
                    mean = mean + shift
                    arms.append({"name": f"{name} + {evaluator}", "source": name, "kind": kind,
                                 "evaluator": evaluator, "validation": mean - 0.01, "budget": budget, "mean": mean,
                                 "low": mean - half, "high": mean + half, "seeds": [0, 1, 2], "macro_f1": mean - 0.01,
                                 "auroc": min(0.999, mean + 0.04), "wall_s": 41.5})
    for budget, mean, half in ((10, 0.41, 0.06), (100, 0.74, 0.03), ("all", 0.951, 0.008)):
        arms.append({"name": "supervised from scratch", "kind": "control", "evaluator": "from scratch",
                     "budget": budget,
                     "source": "supervised from scratch", "validation": mean, "mean": mean, "low": mean - half,
                     "high": mean + half, "seeds": [0, 1, 2], "wall_s": 62.0})
    steps = list(range(10, 1001, 10))
    curves = {}
    for i, name in enumerate(base):
        noise = rng.normal(0, 0.03, len(steps))
        curves[name] = {"step": steps, "loss": [(2.5 - i) * (0.3 + np.exp(-s / 250)) + e
                                                for s, e in zip(steps, noise, strict=True)],
                        "rank": [12 + 20 * (1 - np.exp(-s / (200 + 90 * i))) + 8 * e
                                 for s, e in zip(steps, noise, strict=True)]}
    return {"verdict": {"answer": answer, "sentence": "Pre-training on your own data pays: with 100 labels SimCLR "
                        "reaches 86.0 %, 7.0 points above the best control (raw pixels).",
                        "numbers": {"unit": "accuracy", "level": 1 - 0.05 / 3, "margin": 0.01, "budgets": [
                            {"budget": b, "pretrained": "simclr + linear_probe", "control": "raw pixels + knn",
                             "mean": m, "low": m - 0.04, "high": m + 0.04, "answer": "pays"}
                            for b, m in ((10, 0.12), (100, 0.07), ("all", 0.004))]}},
            "metric": "accuracy", "budgets": [10, 100, "all"], "arms": arms,
            "support": {**{str(i): 36 for i in range(9)}, HOSTILE: 35}, "curves": curves,
            "notes": ["Test images were compared with the training images: no duplicates.", HOSTILE],
            "config": {"seed": 0, "steps": 1000, "train": {"lr": 1e-3, "optimizer": "adamw"}, HOSTILE: HOSTILE,
                       **{f"option_{i}": i for i in range(12)}},
            "environment": {"osteon": "0.1.0", "torch": "2.x", "data": {"fingerprint": "9f" * 32, "samples": 1797}},
            "skipped": [(f"images/{HOSTILE}.png", "truncated file"), ("images/b.png", "not an image")],
            "artefacts": pictures()}


RUNS = [{"name": "simclr", "objective": "simclr", "backbone": "resnet_tiny", "seed": 0, "steps": 1000, "wall_s": 41.5},
        {"name": "mae", "objective": "mae", "backbone": "vit_tiny", "seed": 0, "steps": 1000, "wall_s": 75.0}]


@pytest.fixture(scope="session")
def result() -> dict[str, Any]:
    """The complete evaluation."""
    return evaluation()


@pytest.fixture(scope="session")
def runs() -> list[dict[str, Any]]:
    """Two runs of it."""
    return RUNS


def make_run(folder: Path, *, full: bool = True) -> Path:
    """A run folder; without ``full`` it holds only the configuration."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("source: photos/\nobjective: mae\nbackbone: vit_tiny\nseed: 0\n"
                                        "train:\n  lr: 0.001\n  steps: 500\n")
    if not full:
        return folder
    lines = []
    for step in range(1, 501):
        loss: float | str = 0.2 + 1.1 * float(np.exp(-step / 120)) if step != 250 else "nan"
        lines.append(json.dumps({"step": step, "loss": loss, "rank": 30 - 20 * float(np.exp(-step / 90)),
                                 "feature_std": 0.6, "lr": 1e-3 * (1 - step / 500), "images_per_s": 900.0,
                                 "loss/pixels": loss, "loss/edges": 0.1}))
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 501, "lo']))
    (folder / "skipped.csv").write_text(f'id,reason\n"a,b.png",truncated\n{HOSTILE}.png,truncated\n')
    (folder / "provenance.json").write_text(json.dumps({"versions": {"torch": "2.x"}, "notes": ["size=8: as stored"],
                                                        "data": {"source": "photos/", "samples": 1797}}))
    np.savez(folder / "artefacts.npz", **pictures())
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A complete run folder without an evaluation."""
    return make_run(tmp_path / "my-run")
