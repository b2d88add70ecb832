"""The card at the head of every method file: what the method is, found by parsing and never by importing."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = ("objective", "adapter", "compressor", "merger", "evaluator", "analysis", "selector", "backbone",
         "training")
#: Kind of method -> the package folder that holds it.
ROOMS = {"objective": "objectives", "adapter": "adapters", "compressor": "compressors", "merger": "mergers",
         "evaluator": "evaluators", "analysis": "evaluators", "selector": "selectors", "backbone": "backbones",
         "training": "parts"}


@dataclass(frozen=True)
class Card:
    """What a method is. Written as a literal (only constants) at the head of its file.

    Args:
        kind: one of :data:`KINDS`.
        name: snake-case name; equals the file's name.
        papers: titles as published, in the order of importance.
        modalities: modalities the method is defined for, e.g. ``("image", "sound")``; ``("any",)`` where it reads
            features alone.
        differs: where the implementation departs from the paper and why; never empty.
        rows: numbers of the papers in osteon's list of 442.
        backbones: families it can train: ``"tokens"`` (ViT-like), ``"maps"`` (convolutional), ``"towers"`` (one
            encoder a modality), ``"nodes"`` (graph networks).
        labels: whether training needs labels.
        cost: a word on compute, e.g. ``"2 forwards per image"``.
        switch: what turns it on: of training options, and of objectives that need data read in a way of their own, in
            ``osteon pretrain``; of analyses the whole command.
        limits: why it is not defined for the other modalities, where that does not go without saying.
    """

    kind: str
    name: str
    papers: tuple[str, ...]
    modalities: tuple[str, ...]
    differs: str
    rows: tuple[int, ...] = ()
    backbones: tuple[str, ...] = ("tokens", "maps")
    labels: bool = False
    cost: str = ""
    switch: str = ""
    limits: str = ""
    summary: str = field(default="", compare=False)  # first line of the file's docstring, filled by the parser
    file: str = field(default="", compare=False)  # path, filled by the parser
