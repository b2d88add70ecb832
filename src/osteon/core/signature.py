"""Read a class's constructor from its source text: names, types, defaults and docstrings of its options."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osteon.core.errors import UsageError
from osteon.core.options import Option

_SECTION = re.compile(r"^(?:Args|Arguments|Attributes|Returns|Raises|Yields|Examples?|Notes?|Shapes?)\s*:\s*$")
_ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:\s*,\s*\w+)*)\s*(?:\([^)]*\))?\s*:\s*(?P<doc>.*)$")


def normalised(name: str) -> str:
    """``SimCLR``, ``sim_clr`` and ``simclr`` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def parse(file: Path) -> ast.Module:
    """The syntax tree of a file; UsageError naming file and line when it is not Python."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UsageError(f"'{file.name}' is not valid Python: {error.msg}.", where=f"{file}:{error.lineno}",
                         fix="Correct the file.") from error


def public_class(file: Path, name: str, tree: ast.Module | None = None) -> ast.ClassDef:
    """The class a method file stands for: the public one named like the card, or the only public one."""
    tree = tree or parse(file)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    matching = [node for node in classes if normalised(node.name) == normalised(name)]
    if len(matching) == 1:
        return matching[0]
    if len(classes) == 1:
        return classes[0]
    found = ", ".join(node.name for node in classes) or "none"
    raise UsageError(f"'{file.name}' must hold one public class named like '{name}'; found: {found}.", where=str(file),
                     fix="Name the class after the card, or make the others private with a leading underscore.")


def read_options(file: Path, name: str) -> list[Option]:
    """The options of the class of a method file.

    Options are the constructor's keyword-only arguments and its other arguments with a default; what must be given by
    position (backbone, data) is none. A class without ``__init__`` has the options of its first base that has one.
    """
    tree = parse(file)
    lineage = list(_lineage(public_class(file, name, tree), tree))
    docs: dict[str, str] = {}
    for node, _ in reversed(lineage):
        docs |= argument_docs(ast.get_docstring(node) or "")
    for node, module in lineage:
        constants = _constants(module)
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            docs |= argument_docs(ast.get_docstring(init) or "")
            return list(_from_arguments(init.args, constants, docs))
        if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            return list(_from_fields(node, constants, docs))
    return []


def argument_docs(docstring: str) -> dict[str, str]:
    """The ``Args:`` section of a Google-style docstring; ``sim, var: text`` documents both names."""
    docs: dict[str, str] = {}
    lines = iter(docstring.expandtabs().splitlines())
    if not any(line.strip() in ("Args:", "Arguments:") for line in lines):
        return docs
    indent: int | None = None
    current: list[str] = []
    for line in lines:
        text = line.strip()
        if not text:
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0 or _SECTION.match(text):
            break
        indent = depth if indent is None else indent
        entry = _ENTRY.match(text) if depth <= indent else None
        if entry:
            current = [n.strip().lstrip("*") for n in entry["names"].split(",")]
            docs |= dict.fromkeys(current, entry["doc"])
        else:
            docs |= {n: f"{docs[n]} {text}".strip() for n in current}
    return docs


def _lineage(node: ast.ClassDef, tree: ast.Module) -> Iterator[tuple[ast.ClassDef, ast.Module]]:
    """The class, then its bases in this file or in modules of the same package, nearest first."""
    yield node, tree
    for base in node.bases:
        found = _locate(base, tree)
        if found is not None:
            yield from _lineage(*found)


def _locate(base: ast.expr, tree: ast.Module) -> tuple[ast.ClassDef, ast.Module] | None:
    if not isinstance(base, ast.Name):
        return None
    here = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == base.id), None)
    if here is not None:
        return here, tree
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.level == 0:
            original = next((a.name for a in statement.names if (a.asname or a.name) == base.id), None)
            file = _module_file(statement.module) if original else None
            if original and file:
                return _locate(ast.Name(original), parse(file))
    return None


def _module_file(module: str) -> Path | None:
    """Where a module's source lies, found without importing it; only packages that follow osteon's layout matter."""
    top, *rest = module.split(".")
    if top in ("torch", "numpy"):  # their classes have no options of ours
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or []:
        for file in (Path(folder).joinpath(*rest).with_suffix(".py"), Path(folder).joinpath(*rest, "__init__.py")):
            if file.is_file():
                return file
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") and not rest else None


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Module-level names bound to literals, so that ``lr: float = LR`` shows a value."""
    constants: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            try:
                constants[target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError):
                continue
    return constants


def _from_arguments(args: ast.arguments, constants: dict[str, Any], docs: dict[str, str]) -> Iterator[Option]:
    positional = [*args.posonlyargs, *args.args]
    with_default = positional[len(positional) - len(args.defaults):]
    pairs = [*zip(with_default, args.defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    for argument, default in pairs:
        yield _option(argument.arg, argument.annotation, default, constants, docs)


def _from_fields(node: ast.ClassDef, constants: dict[str, Any], docs: dict[str, str]) -> Iterator[Option]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(item.annotation):
            yield _option(item.target.id, item.annotation, item.value, constants, docs)


def _option(name: str, annotation: ast.expr | None, default: ast.expr | None, constants: dict[str, Any],
            docs: dict[str, str]) -> Option:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value
    else:
        text = ast.unparse(annotation) if annotation is not None else ""
    return Option(name, text, _value(default, constants), docs.get(name, ""), required=default is None)


def _value(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    if node is None:
        return None
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return ast.unparse(node)
