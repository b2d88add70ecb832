"""What the tables of adapters and of compressors share: one backbone, pieces of work that are kept, and when to stop.

Everything measured goes into the cache folder at once, so that a table can be made in pieces, on different days.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.kit import DATA
from benchmarks.journal import Journal
from osteon.core import registry
from osteon.data.cache import cache_folder
from osteon.verbs.pretrain import pretrain

TRAIN, TEST = (str(DATA / "cifar10" / f"{part}.parquet") for part in ("train", "test"))


@dataclass(frozen=True)
class Plan:
    """What a table is made with, the same for every method in it.

    Args:
        run: the backbone, or None: a SimCLR ViT is trained.
        names: methods to measure now; empty: all.
        pretrain: optimiser steps of the backbone.
        steps: optimiser steps of every method that trains.
        seeds: repetitions.
        minutes: start nothing new after so long.
    """

    run: Path | None
    names: tuple[str, ...]
    pretrain: int
    steps: int
    seeds: int
    minutes: float

    def base(self) -> Path:
        """The backbone that every method starts from, trained now if it is not there yet."""
        if self.run is not None:
            return self.run
        folder = cache_folder(None) / "benchmarks" / f"simclr_{self.pretrain}"
        if not (folder / "model.safetensors").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            pretrain(TRAIN, objective="simclr", backbone="vit_tiny", steps=self.pretrain, batch_size=128, out=folder,
                     settings={"limit": 20_000}, progress=False, report=False)
        return folder

    def say(self) -> str:
        """The sizes, for the page."""
        from_ = "the given run" if self.run is not None else f"SimCLR, {self.pretrain:,} steps of 128 images"
        return f"Backbone: {from_}; {self.steps} steps where a method trains; {self.seeds} seeds."


def read(arguments: Sequence[str], *, pretrain: int, steps: int, seeds: int) -> Plan:
    """A plan from the command line, with these sizes unless others are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="methods to measure now; all by default")
    parser.add_argument("--run", type=Path, help="a run in place of the SimCLR backbone")
    parser.add_argument("--pretrain", type=int, default=pretrain)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    chosen = parser.parse_args(list(arguments))
    return Plan(chosen.run, tuple(chosen.names), chosen.pretrain, chosen.steps, chosen.seeds, chosen.minutes)


def sources(kind: str, name: str, base: Path) -> list[Path]:
    """The files a result depends on: the method's own, what its family shares, and the backbone."""
    file = Path(registry.find(kind, name).file)
    return [file, *sorted(file.parent.glob("_*.py")), base / "model.safetensors"]


def work(journal: Journal, pieces: Sequence[tuple[str, str, Callable[[], Any]]], minutes: float) -> int:
    """Do what is not in the journal yet, in order; returns how many pieces are left when time is up.

    Args:
        journal: where results go.
        pieces: (key, mark, what computes the result).
        minutes: start nothing new after so long.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    for done, (key, of, compute) in enumerate(pieces):
        if journal.get(key, of) is not None:
            continue
        if time.perf_counter() - begun > 60 * minutes:
            return sum(journal.get(k, o) is None for k, o, _ in pieces)
        journal.put(key, of, compute())
        print(f"{done + 1}/{len(pieces)} {key} ({(time.process_time() - cpu) / 60:.1f} CPU minutes so far)", flush=True)
    return 0
