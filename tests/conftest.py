"""The pages of the documentation come first: they take longest, and one process runs them while others run the rest."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest file first."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")
