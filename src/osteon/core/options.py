"""Options of a method: read from the text of its constructor, and values checked against their annotations.

An annotation is handled as text (``"int | None"``), so that a method's options can be shown and checked without
importing the method, hence without importing torch.
"""

from __future__ import annotations

import ast
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from osteon.core.errors import UsageError, nearest
from osteon.core.plain import checked_yaml

TRUE, FALSE, NONE = ("true", "yes", "on"), ("false", "no", "off"), ("none", "null", "~")


@dataclass(frozen=True)
class Option:
    """One keyword argument of a method's constructor.

    Args:
        name: argument name; also the key of ``--set``, the YAML key and the name in the documentation.
        type: annotation as written, e.g. ``"float | None"``; empty when there is none.
        default: the default value; its source text when it is not a literal; None when ``required``.
        doc: what the option means, from the ``Args:`` section of the docstring.
        required: whether it has no default.
    """

    name: str
    type: str
    default: Any
    doc: str = ""
    required: bool = False


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-3`` is a number, and ``on``, ``off``, ``yes``, ``no`` are words."""


_REPLACED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _REPLACED]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}
for _kind, _pattern, _first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
        ("float", r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$",
         "-+.0123456789")):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn ``["temperature=0.1", "mean=[0, 1]"]`` into a dict; values are YAML.

    Raises UsageError when a pair has no ``=``, a key is empty or given twice, or a value is not YAML.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"'{pair}' is not a setting.", where="--set", fix="Write --set key=value.")
        if key in settings:
            raise UsageError(f"The setting '{key}' is given twice.", where="--set", fix="Keep one of them.")
        try:
            settings[key] = checked_yaml(yaml.load(text, Loader=_Loader))  # noqa: S506 (safe; YAML 1.2 scalars)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
            text = text.encode("utf-8", "replace").decode("utf-8")[:200]
            raise UsageError(f"The value of '{key}' is not valid YAML: {text}", where="--set",
                             fix="Quote it, e.g. --set 'key=\"value\"'.") from error
    return settings


def settle(options: Sequence[Option], settings: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Check settings against the options of a method and coerce their values; defaults are not filled in.

    Raises UsageError for an unknown name (naming the nearest known one), a missing required option or a wrong type.
    """
    known = {option.name: option for option in options}
    for name in settings:
        if name not in known:
            hint = nearest(name, known)
            listing = f"Known settings: {', '.join(known)}." if known else "It has no settings."
            raise UsageError(f"Unknown setting '{name}'.{hint}", where=where, fix=listing)
    for option in options:
        if option.required and option.name not in settings:
            raise UsageError(f"The setting '{option.name}' is required.", where=where,
                             fix=f"Give --set {option.name}=... ({option.type or 'any type'}).")
    return {name: coerce(value, known[name].type, name=name, where=where) for name, value in settings.items()}


def coerce(value: Any, annotation: str, *, name: str = "value", where: str = "") -> Any:
    """Turn a value from the shell or from YAML into what an annotation asks for.

    Understands ``int``, ``float``, ``bool``, ``str``, ``None``, ``Literal``, ``Optional``, ``Union``, ``|``,
    ``tuple``, ``list`` and ``Sequence``; a value for any other annotation passes unchanged. Nothing is lost on the
    way: ``1.5`` is no int, ``2`` is no bool. Raises UsageError when the value does not fit.
    """
    if not annotation:
        return value
    try:
        return _fit(value, ast.parse(annotation, mode="eval").body)
    except SyntaxError:
        return value
    except _Unfit as error:
        detail = f" ({error})" if str(error) else ""
        raise UsageError(f"{name} must be {annotation}, not {reprlib.repr(value)}{detail}.", where=where or name,
                         fix=f"Give a value of type {annotation}.") from None


class _Unfit(Exception):
    """The value does not fit the annotation."""


def _fit(value: Any, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return _fit_text(value, node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _fit_union(value, _members(node))
    if isinstance(node, ast.Subscript):
        return _fit_subscript(value, node)
    plain = {"int": _int, "float": _float, "bool": _bool, "str": _str}.get(_name(node))
    if plain is not None:
        return plain(value)
    if _name(node) in ("tuple", "Tuple", "list", "List", "Sequence"):
        return _sequence(value, node, None)
    return value


def _fit_text(value: Any, constant: Any) -> Any:
    """``None`` and quoted annotations (``"int"`` inside a string)."""
    if constant is None:
        return _none(value)
    if isinstance(constant, str):
        return _fit(value, ast.parse(constant, mode="eval").body)
    raise _Unfit


def _fit_subscript(value: Any, node: ast.Subscript) -> Any:
    name = _name(node.value)
    if name == "Literal":
        return _literal(value, [ast.literal_eval(item) for item in _items(node.slice)])
    if name == "Optional":
        return _fit_union(value, [node.slice, ast.Constant(None)])
    if name == "Union":
        return _fit_union(value, _items(node.slice))
    if name in ("tuple", "Tuple", "list", "List", "Sequence"):
        return _sequence(value, node.value, node.slice)
    return value


def _fit_union(value: Any, members: list[ast.expr]) -> Any:
    """The first member that takes the value; members whose type the value already has come first, text last."""
    exact = [m for m in members if type(value).__name__ == _name(m) or (value is None and _is_none(m))]
    text = [m for m in members if _name(m) == "str"]
    others = [m for m in members if m not in exact and m not in text]
    for member in [*exact, *others, *text]:
        try:
            return _fit(value, member)
        except _Unfit:
            continue
    raise _Unfit


def _sequence(value: Any, kind: ast.expr, inner: ast.expr | None) -> Any:
    if isinstance(value, str):
        try:
            value = yaml.load(value if value.lstrip().startswith("[") else f"[{value.strip().strip('()')}]",
                              Loader=_Loader)
        except yaml.YAMLError:
            raise _Unfit from None
    items = list(value) if isinstance(value, list | tuple) else [value]
    as_list = _name(kind) in ("list", "List")
    if inner is not None:
        parts = _items(inner)
        if as_list or len(parts) == 1 or (isinstance(parts[-1], ast.Constant) and parts[-1].value is Ellipsis):
            if _name(kind) in ("tuple", "Tuple") and len(parts) == 1 and len(items) != 1:
                raise _Unfit("exactly 1 value is needed")
            items = [_fit(item, parts[0]) for item in items]
        elif _name(kind) in ("tuple", "Tuple"):
            if len(items) != len(parts):
                raise _Unfit(f"{len(parts)} values are needed, {len(items)} given")
            items = [_fit(item, part) for item, part in zip(items, parts, strict=True)]
    return items if as_list else tuple(items)


def _literal(value: Any, choices: list[Any]) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    for choice in choices:  # the shell knows text only; YAML reads none and true as values
        if str(choice).lower() == str(value).lower():
            return choice
    hint = nearest(str(value), [str(c) for c in choices]).strip()
    raise _Unfit(hint or f"choose from {', '.join(map(str, choices))}")


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise _Unfit
    if isinstance(value, str):
        try:
            value = int(value.replace("_", ""))
        except ValueError:
            value = _float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise _Unfit
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise _Unfit
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _Unfit from None
    if not isinstance(value, int | float):
        raise _Unfit
    if math.isnan(value):
        raise _Unfit("not a number")
    return float(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in (*TRUE, "1"):
        return True
    if isinstance(value, str) and value.lower() in (*FALSE, "0"):
        return False
    raise _Unfit("write true or false")


def _str(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise _Unfit


def _none(value: Any) -> None:
    if value is None or (isinstance(value, str) and value.lower() in NONE):
        return None
    raise _Unfit


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _members(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_members(node.left), *_members(node.right)]
    return [node]


def _items(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _name(node: ast.expr) -> str:
    """``int`` and ``typing.Literal`` alike give their last word."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
