"""Tables that are made in pieces: what was measured is not measured again, and nothing new starts when time is up."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import adapters, compressors
from benchmarks.base import read, work
from benchmarks.journal import Journal, needed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path))


def test_pieces_are_done_once_until_what_they_depend_on_changes():
    done: list[str] = []

    def pieces(of: str):
        return [(key, of, lambda key=key: done.append(key) or {"got": key}) for key in ("a", "b", "c")]

    assert work(Journal("t"), pieces("1"), minutes=-1) == 3 and done == [], "no time"
    assert work(Journal("t"), pieces("1")[:2], minutes=5) == 0 and done == ["a", "b"]
    assert work(Journal("t"), pieces("1"), minutes=5) == 0 and done == ["a", "b", "c"]
    assert Journal("t").get("b", "1") == {"got": "b"}
    work(Journal("t"), pieces("2"), minutes=5)
    assert done == ["a", "b", "c"] * 2


def test_sizes_can_be_asked_for():
    plan = read(["lora", "--steps", "7", "--minutes", "2"], pretrain=5, steps=6, seeds=3)
    assert (plan.names, plan.steps, plan.pretrain, plan.seeds, plan.minutes) == (("lora",), 7, 5, 3, 2.0)


def test_rows_hold_what_was_measured():
    cost = {"trainable": 50, "saved_bytes": 10, "optimizer_bytes": 4, "step_seconds": 1.0}
    full = {"trainable": 500, "saved_bytes": 40, "optimizer_bytes": 16, "step_seconds": 2.0}
    right = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1], dtype=bool)  # 6 of 10
    found = {"right": np.packbits(right).tobytes().hex(), "own": cost, "full": full, "bytes": 1234, "test": 10}
    text = adapters.line("lora", [found, found])
    assert text.startswith("| lora | 60.0 [") and text.endswith("| 60.0, 60.0 | 50 | 1,234 | 25.0 | 25.0 | 50.0 |")
    score = {"knn": {"value": 0.5, "low": 0.4, "high": 0.6}}
    rows = [{"name": name, "params": p, "flops": p, "bytes": p, "saved_bytes": p, "latency_1_ms": 1.0,
             "latency_64_ms": 2.0, "scores": score} for name, p in (("original", 100), ("pela", 50), ("control", 49))]
    names = [line.split(" | ")[0] for line in compressors.table({"pela": [rows, rows], "trp": [rows[:2], rows[:2]]})]
    assert names == ["| original", "| pela", "| control, as pela", "| pela, as trp"]


def test_what_a_module_needs_is_followed_through_heads_functions_and_parents(tmp_path):
    package = tmp_path / "pack"
    for name, text in {"__init__": "import pack.unused", "unused": "", "a": "from pack.sub import b, constant\n",
                       "sub/__init__": "from pack import head", "sub/b": "def f():\n    import pack.c\n", "c": "",
                       "head": "from pack.a import g", "lonely": "import pack.a"}.items():
        (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    found = {str(path.relative_to(package)) for path in needed(package / "a.py", package)}
    assert found == {"a.py", "sub/__init__.py", "sub/b.py", "c.py", "head.py"}
