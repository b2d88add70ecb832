"""``python -m osteon`` is the ``osteon`` command."""

from __future__ import annotations

from osteon.cli import main

if __name__ == "__main__":
    main()
