"""``osteon methods``: what osteon can do, read from the cards of its methods without importing torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from osteon.core import registry
from osteon.core.card import Card
from osteon.core.signature import normalised

if TYPE_CHECKING:
    from rich.console import RenderableType


def methods(words: str = "", *, kind: str | None = None, modality: str | None = None,
            paper: str | int | None = None) -> list[Card]:
    """The cards of all methods that fit; a method named exactly like ``words`` comes first.

    Args:
        words: words that must all occur in a card: name, summary, paper titles, differences, cost. Empty: all cards.
        kind: only this kind: ``objective``, ``evaluator``, ``backbone``, ...
        modality: only methods defined for this modality, e.g. ``image``.
        paper: part of a paper's title, or its number in osteon's list of papers.

    Raises UsageError for an unknown kind or modality, naming the nearest known one.
    """
    found = registry.cards(kind=kind, modality=modality, words=words, paper=paper)
    if not found and words:  # 'sim-clr' and 'SimCLR' are the method simclr
        found = [c for c in registry.cards(kind=kind, modality=modality, paper=paper) if is_named(c, words)]
    return sorted(found, key=lambda card: not is_named(card, words))


def is_named(card: Card, words: str) -> bool:
    """Whether the words are exactly the name of the method, case, spaces and hyphens aside."""
    return normalised(words) == normalised(card.name)


def as_json(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """Cards with their options as plain data, for ``--json``."""
    return [{
        "kind": card.kind, "name": card.name, "summary": card.summary, "papers": list(card.papers),
        "modalities": list(card.modalities), "differs": card.differs, "rows": list(card.rows),
        "backbones": list(card.backbones), "labels": card.labels, "cost": card.cost,
        "switch": card.switch, "limits": card.limits,
        "evidence": evidence(card),
        "options": [{"name": o.name, "type": o.type, "default": o.default, "required": o.required, "doc": o.doc}
                    for o in registry.options(card)],
    } for card in cards]


def evidence(card: Card) -> list[dict[str, Any]]:
    """Claims of the method's papers that were measured here: ``claim``, ``data``, ``measured``, ``holds``, ``command``.

    Empty where none was. The figures are those of ``docs/evidence/claims``.
    """
    return list(_evidence().get(card.name, []))


@cache
def _evidence() -> dict[str, list[dict[str, Any]]]:
    return dict(json.loads((resources.files("osteon") / "evidence.json").read_text(encoding="utf-8")))


def table(cards: Sequence[Card]) -> RenderableType:
    """A table of cards, one line a method, for a terminal."""
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    view.add_column("kind", style="dim", no_wrap=True)
    view.add_column("name", style="cyan", no_wrap=True)
    view.add_column("what it does")
    view.add_column("trains", no_wrap=True)
    view.add_column("claims measured", no_wrap=True)
    for card in cards:
        held = evidence(card)
        mark = f"{sum(e['holds'] for e in held)} of {len(held)} hold" if held else ""
        view.add_row(card.kind, card.name, card.summary, " ".join(card.backbones), mark)
    return view


def page(card: Card) -> RenderableType:
    """Everything on one card, with the method's options, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for label, value in _facts(card):
        facts.add_row(label, Text(value))
    parts: list[RenderableType] = [Text(f"{card.name}  ({card.kind})", style="bold cyan"), Text(card.summary), facts]
    for entry in evidence(card):
        parts += [Text(""), Text(f"Measured here: {'holds' if entry['holds'] else 'does not hold'} at this scale",
                                 style="bold"), Text(f"the paper: {entry['claim']}"), Text(f"here: {entry['data']}"),
                  *(Text(f"{'holds' if m['holds'] else 'DOES NOT HOLD'}: {m['what']}") for m in entry["measured"]),
                  Text(entry["command"], style="dim")]
    options = registry.options(card)
    if options:
        view = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("option", "type", "default", "meaning"):
            view.add_column(heading, no_wrap=heading == "option", style="cyan" if heading == "option" else None)
        for o in options:
            view.add_row(o.name, Text(o.type), Text("required" if o.required else str(o.default)), Text(o.doc))
        parts += [Text(""), view, Text(f"Turn it on with: {card.switch}" if card.switch else
                                       f"Set one with: --set {options[0].name}=VALUE", style="dim")]
    elif card.switch:
        parts += [Text(""), Text(card.switch, style="dim")]
    return Group(*parts)


def _facts(card: Card) -> list[tuple[str, str]]:
    facts = [("papers", "\n".join(card.papers)), ("in the list", ", ".join(map(str, card.rows))),
             ("modalities", ", ".join(card.modalities)), ("not others, as", card.limits),
             ("backbones", ", ".join(card.backbones)),
             ("labels", "needed" if card.labels else "not needed"), ("cost", card.cost), ("differs", card.differs)]
    return [(label, value) for label, value in facts if value]
