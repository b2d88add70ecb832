"""Run claims and keep what they print: ``python -m benchmarks.claims [NUMBER ...] [--quick]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.claims.kit import ROOT


def main(arguments: list[str]) -> int:
    """Run the named claims (all by default); ``--quick`` takes a few steps, to see that nothing breaks."""
    quick = "--quick" in arguments
    names = sorted(p.stem for p in Path(__file__).parent.glob("claim_*.py"))
    wanted = [f"claim_{int(a):03d}" for a in arguments if a != "--quick"] or names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    for name in wanted:
        record = importlib.import_module(f"benchmarks.claims.{name}").run(quick=quick)
        if not quick:
            folder = ROOT / "docs" / "evidence" / "claims"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.md").write_text(record.markdown(), encoding="utf-8")
    return 0


sys.exit(main(sys.argv[1:]))
