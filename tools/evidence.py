"""Put what the pages of ``docs/evidence/claims`` say into the package: ``python tools/evidence.py`` writes it.

``src/osteon/evidence.json`` maps the name of a method to the claims of its papers that were measured, so that
``osteon methods NAME`` can show them. With ``--check`` nothing is written and a difference makes the command fail.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osteon.core import registry
from osteon.core.card import Card

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "evidence" / "claims"
FILE = ROOT / "src" / "osteon" / "evidence.json"
_TITLE = re.compile(r"# Claim (\d+): (holds|does not hold)\b")
_CHECK = re.compile(r"^(holds|DOES NOT HOLD): (.+)$", re.MULTILINE)


def read_page(text: str, where: str = "") -> tuple[int, dict[str, Any]]:
    """Number of the paper and what its page says.

    Returns:
        The number, and ``claim`` (the paper's), ``data`` (the protocol), ``measured`` (every comparison with its number
        and whether it held), ``holds`` (all of them) and ``command``.
    """
    title = _TITLE.match(text)
    if title is None:
        raise SystemExit(f"{where}: the first line is not '# Claim N: holds' or '# Claim N: does not hold'.")
    parts = {}
    for key, label in (("claim", "Paper"), ("data", "Protocol")):
        found = re.search(rf"^\*\*{label}:\*\* (.+)$", text, re.MULTILINE)
        if found is None:
            raise SystemExit(f"{where}: there is no line '**{label}:** ...'.")
        parts[key] = found[1].strip()
    measured = [{"what": what.strip(), "holds": word == "holds"} for word, what in _CHECK.findall(text)]
    holds = title[2] == "holds"
    if not measured or holds != all(m["holds"] for m in measured):
        raise SystemExit(f"{where}: the title says '{title[2]}', the comparisons say otherwise.")
    number = int(title[1])
    return number, {**parts, "measured": measured, "holds": holds, "command": f"python -m benchmarks.claims {number}"}


def collect(pages: Mapping[str, str], cards: Iterable[Card]) -> dict[str, list[dict[str, Any]]]:
    """Evidence by the names of the methods on whose cards a page's paper stands; pages by file name."""
    found: dict[str, list[dict[str, Any]]] = {}
    every = list(cards)
    for name in sorted(pages):
        number, entry = read_page(pages[name], name)
        for card in every:
            if number in card.rows:
                found.setdefault(card.name, []).append(entry)
    return dict(sorted(found.items()))


def current() -> str:
    """What the file should hold now."""
    pages = {p.name: p.read_text(encoding="utf-8") for p in PAGES.glob("claim_*.md")}
    return json.dumps(collect(pages, registry.cards()), indent=1, ensure_ascii=False) + "\n"


def main(argv: list[str]) -> int:
    """Write the file, or compare."""
    if "--check" not in argv:
        FILE.write_text(current(), encoding="utf-8")
        return 0
    same = FILE.exists() and FILE.read_text(encoding="utf-8") == current()
    if not same:
        print("src/osteon/evidence.json is not what docs/evidence/claims says: run python tools/evidence.py")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
