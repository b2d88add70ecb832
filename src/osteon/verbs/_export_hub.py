"""The model card of an exported folder, written from what the run itself recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.core.licences import UNKNOWN, Standing, differing
from osteon.modalities import find
from osteon.parts.types import DataSpec
from osteon.verbs._model import Trained

#: identifiers that the Hub knows; any other licence is "other" there, with its name
KNOWN = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
                   "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
                   "openrail", "unlicense", UNKNOWN})
#: modality -> the Hub's word for what the network does; features of anything else by default
TASKS = {"image": "image-feature-extraction", "graph": "graph-ml"}
#: what the parts of a sample's extent are called
SIDES = {"image": "height, width", "sound": "bands, frames", "series": "time", "text": "words", "table": "columns",
         "volume": "depth, height, width", "video": "frames, height, width", "points": "points",
         "graph": "nodes", "several": "values"}


def model_card(run: Path, trained: Trained, files: Mapping[str, str], standing: Standing) -> str:
    """README.md of a Hub folder: data, initial weights and their licences, training, scores with intervals, use.

    Args:
        run: the run folder; what it lacks is said to be unknown.
        trained: its network.
        files: name of each file in the folder and what it is.
        standing: the licences it stands under.
    """
    provenance, config = _json(run / "provenance.json"), _config(run)
    meta, backbone, spec = trained.meta, trained.backbone, trained.spec
    data = provenance.get("data") or {"source": meta.get("source"), "fingerprint": meta.get("fingerprint")}
    source = data.get("source") or ", ".join(map(str, data.get("sources") or ()))
    objective = (meta.get("objective") or {}).get("name", "unknown")
    numbers = sum(p.numel() for p in backbone.parameters())
    lines = ["---", _front(objective, spec.modality, standing), "---", "", f"# {trained.name}", "",
             f"{backbone.name}, {numbers:,} parameters, features of width {backbone.dim}; trained with {objective}"
             + (f" for {meta['steps']:,} steps" if isinstance(meta.get("steps"), int) else "")
             + f" on {find(spec.modality).SAMPLES}.", ""]
    if meta.get("compressed"):
        steps = "; ".join(f"{c['method']} to {c['budget']}" for c in meta["compressed"])
        lines += [f"Compressed: {steps}.", ""]
    lines += ["## Data", "", f"- Source: `{source or 'unknown'}`",
              f"- Samples: {data.get('samples', 'unknown')}",
              f"- Fingerprint: `{data.get('fingerprint') or 'unknown'}`",
              f"- Licence: {_said(standing.data_license)}", "",
              "## Initial weights", "", *_weights(provenance.get("initial_weights", UNKNOWN), standing), "",
              "## Preprocessing", "", _preprocessing(spec), "", "## Scores", "", *_scores(run), ""]
    names = meta.get("class_names") or []
    if names:
        lines += ["## Labels", "", ", ".join(map(str, names)), ""]
    versions = provenance.get("versions", {})
    lines += ["## Files", "", *(f"- `{name}`: {what}" for name, what in files.items()), "", "## Use", "", *_use(spec),
              "", f"Made with osteon {versions.get('osteon', 'unknown')} and torch {versions.get('torch', 'unknown')}"
              + (f", seed {config['seed']}" if "seed" in config else "") + ".", ""]
    return "\n".join(lines)


def _front(objective: str, modality: str, standing: Standing) -> str:
    """The YAML header: what the Hub sorts models by."""
    import yaml

    name = standing.license.lower()
    licence = {"license": name} if name in KNOWN else {
        "license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-") or UNKNOWN}
    return str(yaml.safe_dump({
        "library_name": "osteon", "pipeline_tag": TASKS.get(modality, "feature-extraction"), **licence,
        "data_license": standing.data_license, "tags": ["osteon", objective, modality]}, sort_keys=False,
        allow_unicode=True)).rstrip("\n")


def _said(licence: str) -> str:
    return "unknown: ask whoever trained it" if licence == UNKNOWN else licence


def _weights(found: Any, standing: Standing) -> list[str]:
    """Where the weights come from, each with its licence and what it came from itself; and whether they differ."""
    origins = standing.origins
    if not origins:
        first = [f"- {found}" + ("" if found == "random" else ", licence: unknown")]
    else:
        first = _tree(origins, 0)
    notes = [f"- {note}" for note in differing(origins)] if len(origins) > 1 else []
    return [*first, *notes, f"- Licence of these weights: {_said(standing.license)}"]


def _tree(origins: Sequence[Mapping[str, Any]], depth: int) -> list[str]:
    lines = []
    for origin in origins:
        data = origin.get("data_license")
        lines.append(f"{'  ' * depth}- {origin.get('name', UNKNOWN)}, licence: {origin.get('license', UNKNOWN)}"
                     + (f", its data's: {data}" if data else ""))
        inner = origin.get("origins")
        lines += _tree(inner, depth + 1) if isinstance(inner, list) and depth < 8 else []
    return lines


def _preprocessing(spec: DataSpec) -> str:
    """How a stored sample becomes what the network reads."""
    shape = " x ".join(map(str, spec.extent))
    samples = find(spec.modality).SAMPLES
    read = (f"resized to {spec.size} x {spec.size} pixels (bilinear, antialias)" if spec.modality == "image" and
            spec.extent == (spec.size, spec.size) else f"of {spec.channels} x {shape} ({SIDES[spec.modality]})")
    traits = ", ".join(f"{key} {value}" for key, value in spec.traits.items() if isinstance(value, (int, float, str))
                       and len(str(value)) <= 40)
    many = len(spec.mean) > 8
    mean, std = ("each channel's mean", "its deviation") if many else map(_numbers, (spec.mean, spec.std))
    return (f"{samples.capitalize()} {read}; values divided by {spec.scale:g}, {mean} subtracted, divided by {std}. "
            f"{spec.channels} channels." + (f" Read with {traits}." if traits else "")
            + (" Mean and deviation are in `config.json`." if many else ""))


def _use(spec: DataSpec) -> list[str]:
    """Two programs: features of a source, and of a batch that is prepared already."""
    shape = ", ".join(map(str, spec.extent))
    return ["```python", "import osteon", "",
            f"# {find(spec.modality).SAMPLES} of a source, read and prepared as above: one row a sample",
            'folder = osteon.embed("FOLDER", "SOURCE", out="features")', "```", "", "```python", "import osteon", "",
            'made = osteon.load("FOLDER")',
            f"# batch: float32 (B, {spec.channels}, {shape}), prepared as above",
            "features = made.backbone(batch).pooled  # (B, " + "width)", "```"]


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
