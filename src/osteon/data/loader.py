"""Batches as a pure function of the step: the order of an epoch is a function of (seed, epoch) and nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.data.dataset import Dataset

_AHEAD = 3


class Loader:
    """Shuffled global batches, of which this rank gets its share.

    An epoch is one permutation of the dataset cut into whole global batches; what is left over at its end is dropped
    (another part each epoch). Rank r of w holds positions ``share`` = [r B / w, (r + 1) B / w) of every global batch.

    With ``repeats`` R every image stands R times in its batch, at places B / R apart, each to be augmented anew, and an
    epoch of as many samples shows 1 / R of the images (repeated augmentation: Hoffer et al. 2020, arXiv:1901.09335;
    Berman et al. 2019, arXiv:1902.05509).

    Where several sources are mixed, ``dataset.mixture`` says instead which rows a step takes.

    Args:
        dataset: what to deliver.
        batch_size: global batch size B, over all ranks.
        seed: of the order.
        rank: number of this process.
        world: number of processes.
        repeats: copies of each image in a batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, rank: int = 0, world: int = 1,
                 repeats: int = 1) -> None:
        if batch_size < 1:
            raise UsageError(f"A batch size of {batch_size} is not possible.", where="batch_size",
                             fix="Choose 1 or more.")
        if batch_size > len(dataset):
            raise UsageError(f"A batch of {batch_size} is larger than the {len(dataset)} images there are.",
                             where="batch_size", fix=f"Set the batch size to {len(dataset)} or less.")
        if not 0 <= rank < world:
            raise UsageError(f"Rank {rank} of {world} processes does not exist.", where="rank", fix="Use 0..world-1.")
        if batch_size % world:
            raise UsageError(f"A batch of {batch_size} cannot be shared equally by {world} processes.",
                             where="batch_size",
                             fix=f"Choose a multiple of {world}, e.g. {max(1, batch_size // world) * world}.")
        if repeats < 1 or batch_size % repeats:
            raise UsageError(f"A batch of {batch_size} cannot hold every image {repeats} times.", where="repeats",
                             fix=f"Choose a batch size that is a multiple of {max(1, repeats)}.")
        if dataset.mixture is not None:
            dataset.mixture.check(batch_size // repeats)
        self.repeats = repeats
        self.dataset, self.batch_size, self.seed, self.rank, self.world = dataset, batch_size, seed, rank, world
        local = batch_size // world
        self.share = slice(rank * local, (rank + 1) * local)
        self._held: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return len(self.dataset) // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """Dataset indices of the whole global batch of a step, (B,) int64."""
        distinct = self.batch_size // self.repeats
        if self.dataset.mixture is not None:
            return np.tile(self.dataset.mixture.rows(step, distinct, self.seed), self.repeats)
        epoch, place = divmod(step, self.steps_per_epoch)
        held = self._held
        if held is None or held[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
            self._held = held = (epoch, order)
        return np.tile(held[1][place * distinct:(place + 1) * distinct], self.repeats)

    def at(self, step: int) -> dict[str, Tensor]:
        """This rank's share of the global batch of a step (see :meth:`Dataset.batch`)."""
        return self.dataset.batch(self.rows(step)[self.share])

    def iterate(self, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        """Batches of the steps ``start`` to ``stop`` - 1, made ahead by a thread that ends with the iteration."""
        ahead: queue.Queue[dict[str, Tensor] | BaseException | None] = queue.Queue(maxsize=_AHEAD)
        ended = threading.Event()

        def put(item: dict[str, Tensor] | BaseException | None) -> None:
            while not ended.is_set():
                try:
                    return ahead.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in range(start, stop):
                    if ended.is_set():
                        return
                    put(self.at(step))
                put(None)
            except BaseException as error:  # raised again in the consumer, where somebody sees it
                put(error)

        thread = threading.Thread(target=work, name="osteon-loader", daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            thread.join()
