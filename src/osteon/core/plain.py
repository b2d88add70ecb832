"""Settings as plain values, and what differs between two sets of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

#: Settings (top-level, or of training) that may differ when a run is resumed: they do not change what is learned.
FREE_KEYS = frozenset({"checkpoint_every", "device", "log", "log_every", "loggers", "num_threads", "num_workers", "out",
                       "prefetch", "progress", "quiet", "threads", "verbose", "workers"})
_ABSENT = "(not set)"
#: Most values of a file of settings.
MOST_VALUES = 100_000


def plain(value: Any, *, text_numbers: bool = False, finite: bool = False) -> Any:
    """The same value in the types JSON and YAML know: tuples and sets as lists, paths as text, arrays as numbers.

    Args:
        value: nested structure.
        text_numbers: write NaN and infinities as text (the rows of ``metrics.jsonl``, read back as numbers).
        finite: write them as None.
    """
    if isinstance(value, Mapping):
        return {k if isinstance(k, (str, int)) else str(k): plain(v, text_numbers=text_numbers, finite=finite)
                for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [plain(v, text_numbers=text_numbers, finite=finite) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist(), text_numbers=text_numbers, finite=finite)
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value)) if text_numbers else None if finite else float(value)
    if isinstance(value, float):
        return float(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)


def to_yaml(config: Any) -> str:
    """Settings as YAML, in their order."""
    import yaml

    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, in plain values. Raises ValueError with the reason where it cannot be used."""
    import yaml

    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is not a regular file")
        return checked_yaml(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, RecursionError, TypeError, ValueError, AttributeError,  # dates, tags
            LookupError) as error:
        raise ValueError(str(error)[:500] or type(error).__name__) from error


def checked_yaml(value: Any) -> Any:
    """A value YAML made, as it is. Raises ValueError where its aliases make it larger than settings can be."""
    stack, count = [value], 0
    while stack:
        part = stack.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values, or one that contains itself")
        if isinstance(part, bytes):
            raise ValueError("it holds bytes, which no setting is")
        if isinstance(part, str) and any("\ud800" <= letter <= "\udfff" for letter in part):
            raise ValueError("it holds half a surrogate pair, which is no text")
        stack += [*part.keys(), *part.values()] if isinstance(part, Mapping) else list(part) if isinstance(
            part, (list, tuple, set)) else []
    return value


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *,
            free: Collection[str] = FREE_KEYS) -> list[tuple[str, Any, Any]]:
    """``(dotted key, old, new)`` of every setting that differs, but for those that are ``free`` to."""
    import yaml

    # Through YAML once, so that both sides went the same way (1e-3 as text stays text on both).
    before, after = _flat(old), _flat(yaml.safe_load(to_yaml(dict(new))) or {})
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in keys
            if key.removeprefix("train.").split(".")[0] not in free
            and not _same(before.get(key, _ABSENT), after.get(key, _ABSENT))]


def _same(a: Any, b: Any) -> bool:
    # True == 1 in Python, but they are different settings; 1 and 1.0 are the same number.
    return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            result.update(_flat(value, f"{name}."))
        else:
            result[name] = value
    return result
