"""The duplication check finds what is copied and forgives what the house style repeats."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "duplication.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("duplication_tool", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BODY = [f"x{i} = f(x{i})" for i in range(8)]


def found(tool, tmp_path, first, second):
    (tmp_path / "a.py").write_text("\n".join(first) + "\n")
    (tmp_path / "b.py").write_text("\n".join(second) + "\n")
    return tool.twins({p: tool.code_lines(p.read_text()) for p in sorted(tmp_path.glob("*.py"))})


def test_eight_lines_twice_are_found_whatever_their_dress(tool, tmp_path):
    dressed = ["def g():", '    """Other."""', *[f"    {line}  # why" for line in BODY[:4]], "",
               *[f"    {b}" for b in BODY[4:]]]
    (twin,) = found(tool, tmp_path, ["y = 1", *BODY], dressed)
    assert (twin.first.name, twin.first_line) == ("a.py", 2)
    assert (twin.second.name, twin.second_line, twin.length) == ("b.py", 3, 8)


def test_a_longer_run_is_reported_once(tool, tmp_path):
    lines = [*BODY, "x8 = 8", "x9 = 9"]
    (twin,) = found(tool, tmp_path, lines, ["z = 0", *lines])
    assert twin.length == 10


@pytest.mark.parametrize("lines", [
    BODY[:7],
    [f"import m{i}" for i in range(9)], ["from m import (", *[f"    n{i}," for i in range(9)], ")"],
    ['"""', *[f"Line {i}." for i in range(9)], '"""'],
    ["def f(", *[f"    a{i}," for i in range(9)], "): return 1"],
    ["CARD = Card(", *[f"    a{i}={i}," for i in range(9)], ")"],
    ["class A:", "    recipe: ClassVar = {", *[f"        'a{i}': {i}," for i in range(9)], "    }"],
    ["x = [", *["    ["] * 9, *["    ]"] * 9, "]"],
])
def test_what_does_not_count(tool, tmp_path, lines):
    assert found(tool, tmp_path, lines, lines) == []


def test_a_hash_inside_a_string_is_no_comment(tool, tmp_path):
    a = [f'x = "#{i}"' for i in range(8)]
    b = [f'x = "#{i + 1}"' for i in range(8)]
    assert found(tool, tmp_path, a, b) == []
    assert len(found(tool, tmp_path, a, a)) == 1


def test_the_command_fails_on_a_duplicate(tool, tmp_path, capsys):
    (tmp_path / "a.py").write_text("\n".join(BODY) + "\n")
    assert tool.main([str(tmp_path)]) == 0
    (tmp_path / "b.py").write_text("\n".join(BODY) + "\n")
    assert tool.main([str(tmp_path)]) == 1
    assert "b.py:1: 8 lines as at" in capsys.readouterr().out
