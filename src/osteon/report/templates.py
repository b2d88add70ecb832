"""The page's templates. Jinja2 escapes every value; only markup made by this room's own figures passes as it is."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def _source(name: str) -> str:
    return (files("osteon.report") / "pages" / f"{name}.html.j2").read_text(encoding="utf-8")


@cache
def style_sheet() -> Markup:
    """The style sheet of the page."""
    return Markup((files("osteon.report") / "page.css").read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    """Autoescaping on, and a missing value is an error rather than a blank."""
    return Environment(loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)


def render(template: str, values: dict[str, Any]) -> Markup:
    """Fill one of the templates; the result is safe to put into another."""
    return Markup(_environment().get_template(template).render(values))
