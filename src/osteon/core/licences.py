"""Under which licences weights and data may be used, as far as somebody said so: carried on, never guessed.

A licence is an identifier as model cards use it (``apache-2.0``); what nobody stated is ``unknown``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osteon.core.errors import UsageError

UNKNOWN = "unknown"
#: longest statement that is kept
_LONGEST = 200


@dataclass(frozen=True)
class Standing:
    """What is known of the licences a network stands under.

    Args:
        license: of the weights: their origins', where all of them have one.
        data_license: of the data it was trained on last.
        origins: one entry a source of initial weights: ``name``, ``license``, perhaps ``data_license`` and ``origins``.
    """

    license: str = UNKNOWN
    data_license: str = UNKNOWN
    origins: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"license": self.license, "data_license": self.data_license, "origins": self.origins}


def stated(value: Any, where: str = "--set data_license") -> str:
    """A licence as a user said it, or ``unknown`` where nothing was said.

    Raises:
        UsageError: it is no short line of text.
    """
    if value is None:
        return UNKNOWN
    text = str(value).strip()
    if not text or not text.isprintable() or len(text) > _LONGEST or not isinstance(value, str):
        raise UsageError(f"A licence is a short line of text, not {value!r:.80}.", where=where,
                         fix="Name it, e.g. cc-by-4.0; or leave it out: it is 'unknown' then.")
    return text


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML header of a model card; empty where there is no card or no header that can be read."""
    import yaml

    try:
        with open(card, encoding="utf-8", errors="replace") as file:
            text = file.read(100_000)
        parts = text.split("---\n", 2) if text.startswith("---\n") else []
        found = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_card(folder: Path) -> str:
    """The licence in a folder's model card, or ``unknown``."""
    found = front_matter(folder / "README.md")
    name = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return ", ".join(map(str, name)) if isinstance(name, list) and name else str(name or UNKNOWN)


def together(licences: Iterable[str]) -> str:
    """One word for several licences: the one they all have, ``unknown`` where one is, else each of them."""
    found = sorted(set(licences))
    if not found or UNKNOWN in found:
        return UNKNOWN
    return " and ".join(found)


def standing(source: str | Path) -> Standing:
    """What a run folder, an exported folder, another library's folder or a file of a run says of its licences."""
    path = Path(source)
    if path.is_file():  # a run's model or checkpoint
        path = next((p for p in (path.parent, path.parent.parent) if (p / "provenance.json").is_file()), path.parent)
        if not (path / "provenance.json").is_file():
            return Standing()
    provenance = _json(path / "provenance.json")
    if provenance:
        origins = _entries(provenance.get("initial_weights"))
        data = provenance.get("data")
        return Standing(together(str(w.get("license", UNKNOWN)) for w in origins),
                        str(data.get("license") or UNKNOWN) if isinstance(data, Mapping) else UNKNOWN, origins)
    kept = _json(path / "config.json").get("licences")
    if isinstance(kept, Mapping):
        return Standing(str(kept.get("license") or UNKNOWN), str(kept.get("data_license") or UNKNOWN),
                        _entries(kept.get("origins")))
    return Standing(of_card(path))


def entry(source: str | Path) -> dict[str, Any]:
    """A run as the origin of another's weights, for ``initial_weights`` in its provenance."""
    found = standing(source)
    named = {"name": Path(source).name, "license": found.license, "data_license": found.data_license}
    return {**named, **({"origins": found.origins} if found.origins else {})}


def differing(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say where the weights that are put together, or the data behind them, are not under one licence."""
    notes = []
    for key, what in (("license", "licences of the weights"), ("data_license", "licences of their training data")):
        found = [(str(e.get("name", UNKNOWN)), str(e.get(key) or UNKNOWN)) for e in entries]
        if len({licence for _, licence in found}) > 1:
            notes.append(f"LICENCES: the {what} differ ({', '.join(f'{name}: {licence}' for name, licence in found)}); "
                         "whoever uses the result must keep to each of them")
    return notes


def _entries(found: Any) -> list[dict[str, Any]]:
    return [dict(w) for w in found if isinstance(w, Mapping)] if isinstance(found, list) else []


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
