"""A hook for mkdocs: a page for each method, written from its card while the site is built, and a menu of evidence."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osteon.core import registry
from osteon.core.card import KINDS, Card
from osteon.core.options import Option

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ABOUT = {"objective": "what to learn from", "adapter": "how to fit a backbone to a task",
         "compressor": "how to shrink it", "merger": "how to join several",
         "evaluator": "how to score features", "analysis": "how to look inside a run",
         "selector": "which samples to take", "backbone": "networks", "training": "how to train it cheaper"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every method and every page of evidence into the menu."""
    menu: list[object] = ["methods/index.md"]
    for kind in KINDS:
        pages = [{card.name: address(card)} for card in registry.cards(kind=kind)]
        if pages:
            menu.append({heading(kind): pages})
    folder = Path(config.docs_dir, "evidence")
    evidence = sorted(p.relative_to(config.docs_dir).as_posix() for p in folder.rglob("*.md"))
    nav = [{"Methods": menu} if isinstance(entry, dict) and "Methods" in entry else entry for entry in config.nav or []]
    config.nav = [*nav, *([{"Evidence": evidence}] if evidence else [])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    cards = registry.cards()
    pages = {"methods/index.md": index(cards), **{address(card): page(card, registry.options(card)) for card in cards}}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def address(card: Card) -> str:
    """Where a method's page lies in the site."""
    return f"methods/{card.kind}-{card.name.replace('_', '-')}.md"


def heading(kind: str) -> str:
    """Name of a kind as the head of a list."""
    return {"training": "Training", "analysis": "Analyses"}.get(kind, f"{kind.capitalize()}s")


def index(cards: Sequence[Card]) -> str:
    """The page that lists all methods."""
    parts = ["# Methods", "", f"{len(cards)} methods. In the shell: `osteon methods`.", ""]
    for kind in KINDS:
        rows = [card for card in cards if card.kind == kind]
        if rows:
            parts += [f"## {heading(kind)}: {ABOUT[kind]}", ""]
            parts += ["| name | what it does | trains |", "|---|---|---|"]
            parts += [f"| [{card.name}]({address(card).removeprefix('methods/')}) | {cell(card.summary)} "
                      f"| {', '.join(card.backbones)} |" for card in rows]
            parts.append("")
    return "\n".join(parts)


def page(card: Card, options: Sequence[Option]) -> str:
    """The page of one method."""
    facts = [("kind", card.kind), ("modalities", ", ".join(card.modalities)),
             ("not others, as", card.limits), ("backbones", ", ".join(card.backbones)),
             ("labels", "needed" if card.labels else "not needed"), ("cost", card.cost)]
    parts = [f"# {card.name}", "", html.escape(card.summary, quote=False), "", "| | |", "|---|---|"]
    parts += [f"| {label} | {cell(value)} |" for label, value in facts if value]
    parts += ["", "## Papers", "", *[f"- {html.escape(title, quote=False)}" for title in card.papers]]
    parts += ["", "## Differences from the paper", "", html.escape(card.differs, quote=False), ""]
    if card.switch:
        before = "" if card.kind == "analysis" else "osteon pretrain ... "
        parts += ["## Turning it on", "", f"`{before}{card.switch}`", ""]
    if options:
        parts += ["## Options", "", "| option | type | default | meaning |", "|---|---|---|---|"]
        parts += [f"| `{o.name}` | {code(o.type)} | {'required' if o.required else code(o.default)} | {cell(o.doc)} |"
                  for o in options]
        parts.append("")
    if card.kind == "objective":
        parts += ["```bash", f"osteon pretrain photos/ --objective {card.name} --out runs/{card.name}", "```", ""]
    return "\n".join(parts)


def cell(text: str) -> str:
    """Text that is safe inside a table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def code(value: object) -> str:
    """A value as code inside a table; a bar would end the cell."""
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text else ""
