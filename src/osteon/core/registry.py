"""The catalogue: every method's card, found by parsing files and never by importing them.

A file in one of the rooms of :data:`osteon.core.card.ROOMS` with a ``CARD = Card(...)`` literal is a method; nothing is
listed by hand. Other packages add methods through the entry point group ``osteon.methods``, whose values name a module
or a package of such files.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from osteon.core.card import KINDS, ROOMS, Card
from osteon.core.errors import UsageError, nearest
from osteon.core.options import Option, settle
from osteon.core.signature import normalised, public_class, read_options

GROUP = "osteon.methods"
PACKAGE = Path(__file__).resolve().parent.parent
_HEAD_ENDS = re.compile(r"^(?:def |class |async |@)", re.MULTILINE)
_HAS_CARD = re.compile(r"^CARD\s*(?::[^=\n]*)?=", re.MULTILINE)


@dataclass(frozen=True)
class _Entry:
    """A card and the dotted name its file is imported by."""

    card: Card
    module: str


#: What a card's ``modalities`` say where a method reads features and does not care what they are of.
ANY = "any"


def fits(card: Card, modality: str) -> bool:
    """Whether a method is defined for a modality."""
    return modality in card.modalities or ANY in card.modalities


def need(card: Card, modality: str, *, where: str) -> None:
    """Raise UsageError where a method is not defined for a modality, naming those it is for."""
    if not fits(card, modality):
        raise UsageError(f"{card.kind.capitalize()} '{card.name}' is not defined for {modality}; it is for "
                         f"{', '.join(card.modalities)}" + (f": {card.limits}." if card.limits else "."), where=where,
                         fix=f"`osteon methods --kind {card.kind} --modality {modality}` lists those that are.")


def cards(kind: str | None = None, modality: str | None = None, words: str | None = None,
          paper: str | int | None = None) -> list[Card]:
    """All cards that fit, sorted by kind and name.

    Args:
        kind: one of :data:`osteon.core.card.KINDS`.
        modality: a modality the method must be defined for.
        words: words that must all occur in the card (name, summary, papers, differs, cost); any case.
        paper: part of a paper's title, or its number in osteon's list.

    Raises UsageError for an unknown kind or modality, and for a malformed card, naming file and line.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"There is no kind of method called '{kind}'.{nearest(kind, KINDS)}", where="kind",
                         fix=f"Kinds: {', '.join(KINDS)}.")
    found = [entry.card for entry in _catalogue().values()]
    if modality is not None:
        known = sorted({m for card in found for m in card.modalities} - {ANY})
        if modality not in known:
            raise UsageError(f"No method knows the modality '{modality}'.{nearest(modality, known)}", where="modality",
                             fix=f"Modalities: {', '.join(known)}.")
    wanted = (words or "").lower().split()
    return [card for card in found
            if (kind is None or card.kind == kind)
            and (modality is None or fits(card, modality))
            and all(word in _text(card) for word in wanted)
            and (paper is None or _about(card, paper))]


def find(kind: str, name: str) -> Card:
    """The card of a method; ``-`` and case do not matter. Raises UsageError naming the nearest known method."""
    names = {card.name: card for card in cards(kind=kind)}
    wanted = name.strip().lower().replace("-", "_")
    if wanted in names:
        return names[wanted]
    squeezed = {normalised(known): card for known, card in names.items()}
    if normalised(wanted) in squeezed:
        return squeezed[normalised(wanted)]
    raise UsageError(f"There is no {kind} called '{name}'.{nearest(wanted, names)}", where=kind,
                     fix=f"See 'osteon methods --kind {kind}'.")


def load(card: Card) -> type:
    """Import a method's file and return its class: the public one named like the card, or the only public one."""
    entry = _catalogue().get((card.kind, card.name))
    if entry is None:
        raise UsageError(f"There is no {card.kind} called '{card.name}'.", where=card.file)
    wanted = public_class(Path(entry.card.file), card.name)
    return getattr(importlib.import_module(entry.module), wanted.name)


def options(card: Card) -> list[Option]:
    """The options of a method, in the order of its constructor, read from the text of its file.

    Analyses are functions of `osteon analyse`, whose options they share: they have none of their own.
    """
    return [] if card.kind == "analysis" else _options(card.file, card.name)


def build(kind: str, name: str, *args: Any, **settings: Any) -> Any:
    """Construct a method: ``build("objective", "simclr", backbone, spec, temperature=0.1)``.

    Args:
        kind: one of :data:`osteon.core.card.KINDS`.
        name: the method's name.
        args: what the constructor takes by position (objectives: backbone and data).
        settings: its options, checked and coerced by annotation before anything is imported.

    Raises UsageError for an unknown method, an unknown setting (naming the nearest) or a value of the wrong type.
    """
    card = find(kind, name)
    settled = settle(options(card), settings, where=f"{kind} {card.name}")
    return load(card)(*args, **settled)


def suggest(words: str) -> list[str]:
    """Names of the methods whose names come closest to a search that found nothing."""
    names = sorted({card.name for card in cards()})
    return difflib.get_close_matches(words.strip().lower().replace("-", "_"), names, n=3, cutoff=0.5)


def clear() -> None:
    """Forget what was read, so that files written since are seen."""
    _catalogue.cache_clear()
    _options.cache_clear()


@cache
def _options(file: str, name: str) -> list[Option]:
    return read_options(Path(file), name)


@cache
def _catalogue() -> dict[tuple[str, str], _Entry]:
    """Every card by (kind, name), in the order of KINDS and then by name."""
    entries: dict[tuple[str, str], _Entry] = {}
    for file, module, room in [*_own_files(), *_foreign_files()]:
        card = read_card(file, room)
        if card is None:
            continue
        key = (card.kind, card.name)
        if key in entries:
            raise UsageError(f"Two files hold the {card.kind} '{card.name}'.", fix="Rename one of them.",
                             where=f"{entries[key].card.file}, {file}")
        entries[key] = _Entry(card, module)
    order = {kind: i for i, kind in enumerate(KINDS)}
    return dict(sorted(entries.items(), key=lambda item: (order[item[0][0]], item[0][1])))


def _own_files() -> Iterator[tuple[Path, str, str | None]]:
    for room in dict.fromkeys(ROOMS.values()):
        for file in sorted((PACKAGE / room).glob("[!_]*.py")):
            yield file, f"osteon.{room}.{file.stem}", room


def _foreign_files() -> Iterator[tuple[Path, str, str | None]]:
    """Files named by entry points. Nothing is imported: importing a parent package could import torch."""
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        top, *rest = point.value.split(":")[0].strip().split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        folders = [Path(p).joinpath(*rest) for p in (spec.submodule_search_locations or [])] if spec else []
        module = ".".join([top, *rest])
        if spec and spec.origin and not rest and not folders:
            yield Path(spec.origin), module, None
            continue
        folder = next((f for f in folders if f.is_dir()), None)
        single = next((f.with_suffix(".py") for f in folders if f.with_suffix(".py").is_file()), None)
        if folder is not None:
            yield from ((file, f"{module}.{file.stem}", None) for file in sorted(folder.glob("[!_]*.py")))
        elif single is not None:
            yield single, module, None
        else:
            raise UsageError(f"The entry point '{point.name}' names '{point.value}', which is not there.",
                             where=f"{GROUP} of {point.dist.name if point.dist else 'an installed package'}",
                             fix="Reinstall or remove that package.")


def read_card(file: Path, room: str | None = None) -> Card | None:
    """The card in a file (of one of osteon's rooms), None when it has none.

    Raises UsageError, naming file and line, when it is malformed.
    """
    text = file.read_text(encoding="utf-8")
    declared = _HAS_CARD.search(text)
    if declared is None:
        return None
    tree = _parse_head(text, declared.end(), file)
    node = next((s for s in tree.body if isinstance(s, ast.Assign | ast.AnnAssign) and _target(s) == "CARD"), None)
    if node is None:  # the word stood in a docstring
        return None
    where = f"{file}:{node.lineno}"
    card = _card(node.value, where)
    problem = _problem(card, file, room)
    if problem:
        raise UsageError(f"The card of '{file.name}' is malformed: {problem}.", where=where,
                         fix="See 'Extending osteon' in the documentation.")
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0].strip()
    return replace(card, summary=summary, file=str(file))


def _parse_head(text: str, card_at: int, file: Path) -> ast.Module:
    """Parse a file down to its first function or class after the card: a third of the work of parsing it all."""
    ends = _HEAD_ENDS.search(text, card_at)
    try:
        return ast.parse(text[:ends.start()] if ends else text)
    except SyntaxError:
        pass
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise UsageError(f"'{file.name}' is not valid Python: {error.msg}.", where=f"{file}:{error.lineno}",
                         fix="Correct the file.") from error


def _target(node: ast.Assign | ast.AnnAssign) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else ""


def _card(node: ast.expr | None, where: str) -> Card:
    fix = "Write CARD = Card(kind=..., name=..., papers=(...), modalities=(...), differs=...) with constants only."
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
            and ast.unparse(node.func).endswith("Card")):
        raise UsageError("CARD is not a Card(...) literal.", where=where, fix=fix)
    if node.args:
        raise UsageError("CARD takes named arguments only.", where=where, fix=fix)
    known = [f.name for f in fields(Card) if f.name not in ("summary", "file")]
    values: dict[str, Any] = {}
    for keyword in node.keywords:
        at = f"{where.rsplit(':', 1)[0]}:{keyword.value.lineno}"
        if keyword.arg not in known:
            hint = nearest(keyword.arg or "", known)
            raise UsageError(f"A card has no field '{keyword.arg}'.{hint}", where=at, fix=fix)
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError):
            raise UsageError(f"The card's '{keyword.arg}' is not a constant.", where=at, fix=fix) from None
    missing = [n for n in ("kind", "name", "papers", "modalities", "differs") if n not in values]
    if missing:
        raise UsageError(f"The card lacks {', '.join(missing)}.", where=where, fix=fix)
    return Card(**values)


def _problem(card: Card, file: Path, room: str | None) -> str:
    """What is wrong with a card, in words; empty when nothing is."""
    tuples: dict[str, type] = {"papers": str, "modalities": str, "backbones": str, "rows": int}
    for name, item in tuples.items():
        value = getattr(card, name)
        if not isinstance(value, tuple) or not all(type(v) is item for v in value):
            return f"{name} must be a tuple of {item.__name__}"
    for name in ("kind", "name", "differs", "cost", "switch", "limits"):
        if not isinstance(getattr(card, name), str):
            return f"{name} must be text"
    if not isinstance(card.labels, bool):
        return "labels must be True or False"
    if card.kind not in KINDS:
        return f"unknown kind '{card.kind}'{nearest(card.kind, KINDS)}"
    if room is not None and ROOMS[card.kind] != room:
        return f"the file lies among the {room} but the kind is '{card.kind}'"
    if card.name != file.stem:
        return f"the name '{card.name}' differs from the file's name"
    if not card.modalities:
        return "modalities is empty"
    return "" if card.differs.strip() else "differs is empty (write 'nothing known' if so)"


@cache
def _text(card: Card) -> str:
    parts = (card.kind, card.name, card.name.replace("_", " "), card.summary, *card.papers, card.differs, card.cost)
    return " ".join(parts).lower()


def _about(card: Card, paper: str | int) -> bool:
    wanted = str(paper).strip().lower()
    if wanted.isdigit():
        return int(wanted) in card.rows
    return any(wanted in title.lower() for title in card.papers)


