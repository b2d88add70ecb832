"""Print a constraints file that pins every dependency of pyproject.toml to the oldest version it admits."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def floors(pyproject: str) -> list[str]:
    """Lines ``name==oldest`` for each ``name>=oldest`` of the ``dependencies`` table."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit("pyproject.toml has no dependencies table")
    return [f"{name}=={version}.*" if version.count(".") < 2 else f"{name}=={version}"
            for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', block[1])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors((Path(__file__).parent.parent / "pyproject.toml").read_text())) + "\n")
