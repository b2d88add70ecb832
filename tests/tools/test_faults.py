"""Every recorded fault can still be planted: its text stands in the file exactly once, and the change is one."""

from __future__ import annotations

import ast
import json

import pytest
from benchmarks.faults import ROOT, paths

NAMES = sorted(record.stem for record in (ROOT / "tests" / "faults").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_faults_can_be_planted(name):
    record, file, test, _ = paths(name)
    source = file.read_text(encoding="utf-8")
    assert test.is_file()
    for fault in json.loads(record.read_text(encoding="utf-8")):
        assert set(fault) == {"find", "replace", "why"} and fault["find"] != fault["replace"]
        assert source.count(fault["find"]) == 1, fault["why"]
        ast.parse(source.replace(fault["find"], fault["replace"]))  # a fault, not a typing error
