"""From a user's source to batches: recognise, decode once, cache, split, and look for leaks."""

from __future__ import annotations

from osteon.data.dataset import Dataset
from osteon.data.leaks import Duplicates, find_duplicates
from osteon.data.listing import Skipped
from osteon.data.loader import Loader
from osteon.data.source import open_source
from osteon.data.splits import class_weights, label_budget, train_validation_split

__all__ = ["Dataset", "Duplicates", "Loader", "Skipped", "class_weights", "find_duplicates", "label_budget",
           "open_source", "train_validation_split"]
