"""``osteon compare`` in the shell: options arrive at the verb unchanged, the verdict leaves as text or JSON."""

from __future__ import annotations

import inspect
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from osteon import cli
from osteon.verbs.compare import compare as real
from osteon.verbs.compare import table

RESULT: dict[str, Any] = {
    "verdict": {"answer": "does not pay", "paragraph": "Pre-training did not pay."}, "budgets": ["all"],
    "arms": [{"name": "raw pixels + knn", "kind": "control", "budget": "all", "mean": 0.9, "low": 0.8, "high": 1.0},
             {"name": "simclr + knn", "kind": "pretrained", "budget": "all", "mean": 0.7, "low": 0.6, "high": 0.8}],
    "costs": [{"name": "simclr", "steps": 1000, "flop": 2e12, "wall_s": 61.0, "cpu_s": 60.0, "flag": "7% over"}],
    "search_cost": {"flop": 1e11, "wall_s": 9.0}, "comparisons": [
        {"budget": "all", "best": "raw pixels", "source": "simclr", "tie": True}],
    "agreement": [{"a": "rankme", "b": "knn", "spearman": None, "arms": 3},
                  {"a": "knn", "b": "fine-tuned", "spearman": -0.5, "arms": 4}],
    "crashed": [{"arm": "pretrain-mae-s0-9", "type": "MonitorStop", "what": "Loss is NaN.\nMore."}],
    "report": "runs/c/report.html"}


@pytest.fixture
def called(monkeypatch):
    seen: dict[str, Any] = {}

    def compare(*args: Any, **options: Any) -> dict[str, Any]:
        seen.update(args=args, options=options)
        return RESULT

    module = ModuleType("osteon.verbs.compare")
    module.compare, module.table = compare, table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "osteon.verbs.compare", module)
    return seen


def shell(*words: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(words))
    return int(leaving.value.code or 0)


def test_every_option_arrives(called):
    signature = inspect.signature(real)
    assert shell("compare", "s", "--train", "a", "--test", "b", "--recipes", "simclr,mae", "--budget", "5e9flop",
                 "--seeds", "2", "--out", "o", "--metrics", "knn, ncm", "--label-budget", "10,all", "--public",
                 "timm:x,runs/y", "--control", "self", "--set", "flip=false", "--trials", "1", "--finalists", "2",
                 "--engine", "ray", "--workers", "4", "--leaks", "drop", "--task", "regression", "--target", "age",
                 "--horizon", "24", "--context", "48", "--quiet") == 0
    assert called["args"] == ("s",)
    assert called["options"] == {
        "train": "a", "test": "b", "recipes": "simclr,mae", "budget": "5e9flop", "seeds": 2, "out": "o",
        "metrics": ("knn", "ncm"), "label_budget": (10, "all"), "public": ("timm:x", "runs/y"), "control": ("self",),
        "settings": {"flip": False}, "trials": 1, "finalists": 2, "engine": "ray", "workers": 4, "leaks": "drop",
        "task": "regression", "target": "age", "horizon": 24, "context": 48, "progress": False}
    signature.bind(*called["args"], **called["options"])


def test_defaults_are_those_of_python(called):
    assert shell("compare", "s", "--train", "a", "--test", "b", "--out", "o") == 0
    defaults = {k: p.default for k, p in inspect.signature(real).parameters.items()}
    given = {"train": "a", "test": "b", "out": "o"}
    assert {key: called["options"][key] for key in given} == given
    for key, value in called["options"].items():
        if key not in given and key != "settings":
            assert value == defaults[key], key


def test_text_ends_with_the_verdict_and_names_what_differs(called, capsys):
    assert shell("compare", "s", "--train", "a", "--test", "b", "--out", "o") == 0
    said = capsys.readouterr().out
    order = ["rank correlation of rankme and knn over 3 arms: n/a", "over 4 arms: -0.50", "raw pixels + knn",
             "1,000 steps   2.00e+12 FLOP    1 min 01 s    1 min 00 s of CPU  7% over",
             "halving, on trials that did not reach the final: 1.00e+11 FLOP, 9 s",
             "a tie with raw pixels (all labels): simclr", "FAILED: pretrain-mae-s0-9: Loss is NaN.",
             "Pre-training did not pay.", "Wrote runs/c/report.html"]
    assert [said.index(words) for words in order] == sorted(said.index(words) for words in order)
    assert "More." not in said


def test_json_holds_table_and_verdict(called, capsys):
    assert shell("compare", "s", "--train", "a", "--test", "b", "--out", "o", "--json") == 0
    assert json.loads(capsys.readouterr().out) == RESULT
