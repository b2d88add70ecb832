"""The model card of an exported folder, written from what the run itself recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteon.verbs._model import Trained


def model_card(run: Path, trained: Trained, files: Mapping[str, str]) -> str:
    """README.md of a Hub folder: data, initial weights and their licences, training, scores with intervals, use.

    Args:
        run: the run folder; what it lacks is said to be unknown.
        trained: its network.
        files: name of each file in the folder and what it is.
    """
    provenance, config = _json(run / "provenance.json"), _config(run)
    meta, backbone, spec = trained.meta, trained.backbone, trained.spec
    data = provenance.get("data") or {"source": meta.get("source"), "fingerprint": meta.get("fingerprint")}
    objective = (meta.get("objective") or {}).get("name", "unknown")
    numbers = sum(p.numel() for p in backbone.parameters())
    lines = ["---", "library_name: osteon", "pipeline_tag: image-feature-extraction", "license: unknown",
             "tags:", "- osteon", f"- {objective}", "---", "", f"# {trained.name}", "",
             f"{backbone.name}, {numbers:,} parameters, features of width {backbone.dim}; trained with {objective}"
             + (f" for {meta['steps']:,} steps." if isinstance(meta.get("steps"), int) else "."), ""]
    if meta.get("compressed"):
        steps = "; ".join(f"{c['method']} to {c['budget']}" for c in meta["compressed"])
        lines += [f"Compressed: {steps}.", ""]
    lines += ["## Data", "", f"- Source: `{data.get('source') or 'unknown'}`",
              f"- Samples: {data.get('samples', 'unknown')}",
              f"- Fingerprint: `{data.get('fingerprint') or 'unknown'}`",
              f"- Licence: {data.get('license', 'unknown: ask whoever trained it')}", "",
              "## Initial weights", "", *_weights(provenance.get("initial_weights", "unknown")), "",
              "## Preprocessing", "",
              f"Values divided by {spec.scale:g}, resized to {spec.size} x {spec.size} pixels (bilinear, antialias), "
              f"mean {_numbers(spec.mean)} subtracted, divided by {_numbers(spec.std)}. {spec.channels} channels.", "",
              "## Scores", "", *_scores(run), ""]
    names = meta.get("class_names") or []
    if names:
        lines += ["## Labels", "", ", ".join(map(str, names)), ""]
    versions = provenance.get("versions", {})
    lines += ["## Files", "", *(f"- `{name}`: {what}" for name, what in files.items()), "", "## Use", "", "```python",
              "import osteon", "", 'made = osteon.load("FOLDER")', "features = made.backbone(images).pooled", "```", "",
              f"Made with osteon {versions.get('osteon', 'unknown')} and torch {versions.get('torch', 'unknown')}"
              + (f", seed {config['seed']}" if "seed" in config else "") + ".", ""]
    return "\n".join(lines)


def _weights(found: Any) -> list[str]:
    if isinstance(found, list):
        return [f"- {w.get('name', 'unknown')}, licence: {w.get('license', 'unknown')}" for w in found] or ["- random"]
    return [f"- {found}" + ("" if found == "random" else ", licence: unknown")]


def _scores(run: Path) -> list[str]:
    """The table of an evaluation with its verdict, or of a compression or adaptation, or that there is none."""
    found = _json(run / "evaluation.json")
    if found:
        rows = [f"| {a['name']} | {a['kind']} | {a['budget']} | {100 * a['mean']:.1f} [{100 * a['low']:.1f}, "
                f"{100 * a['high']:.1f}] |" for a in found["arms"] if a["mean"] is not None]
        return [f"{found['metric'].capitalize()} in %, 95 % intervals, {found['test_samples']} test samples.", "",
                "| arm | kind | labels | score |", "|---|---|---|---|", *rows, "", str(found["verdict"]["sentence"])]
    found = _json(run / "compression.json")
    if found.get("val_samples"):
        rows = [f"| {row['name']} | {reader} | {100 * s['value']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}] |"
                for row in found["rows"] for reader, s in row["scores"].items()]
        return [f"On {found['val_samples']} held-out samples, 95 % intervals.", "", "| network | reader | score |",
                "|---|---|---|", *rows]
    found = _json(run / "adaptation.json")
    if found:
        return [f"- {name}: {100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
                for name, s in found["scores"]["intervals"].items()]
    return ["Not evaluated: run `osteon evaluate` and export again."]


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(run: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    found = found if isinstance(found, dict) else {}
    return {**found, **({"seed": found["train"]["seed"]} if isinstance(found.get("train"), dict)
                        and "seed" in found["train"] else {})}
