"""Every malformed or odd input loads by a stated rule, is skipped by name, or is refused in one clear error."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest

from tests.malformed.kit import Case, run

MODULES = sorted(file.stem for file in Path(__file__).parent.glob("cases_*.py"))
CASES: list[Case] = [case for name in MODULES
                     for case in importlib.import_module(f"tests.malformed.{name}").CASES]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def test_there_are_enough_of_them() -> None:
    names = Counter(case.name for case in CASES)
    assert len(CASES) >= 300 and max(names.values()) == 1, [name for name, count in names.items() if count > 1]
