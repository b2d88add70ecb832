"""The first members of every vocabulary: what fills a sample up, what hides a word, and what was never seen."""

from __future__ import annotations

SPECIAL = ("<pad>", "<mask>", "<unk>")
PAD, MASK, UNK = 0, 1, 2
