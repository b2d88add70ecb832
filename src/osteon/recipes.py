"""Recipes: what a tournament compares. A recipe is a frozen dataclass; a function that returns one is a recipe too.

A recipe names an objective, a backbone, settings that are kept, and a few settings that are searched.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from osteon.core import registry
from osteon.core.card import Card
from osteon.core.errors import UsageError, nearest
from osteon.core.plain import plain, read_yaml

#: searched like an option: factor of the learning rate that the objective's own recipe gives at this batch size
LR_SCALE = "lr_scale"
#: searched by default, the recipe's own value first; views that are too mild or too harsh are the usual second cause
DEFAULT_SEARCH: dict[str, tuple[Any, ...]] = {LR_SCALE: (1.0, 0.3, 3.0)}
_FIX = "Write a list of recipes or a mapping from names to recipes, as docs/compare.md shows."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")


@dataclass(frozen=True)
class Recipe:
    """One contestant of a tournament.

    Args:
        name: what it is called in tables: letters, digits, ``_ . + -``.
        objective: name of a pre-training objective.
        backbone: as in ``osteon pretrain``; ``auto`` chooses by objective and image size.
        settings: options of objective, backbone, data and training that are kept, as ``--set`` takes them.
        search: option -> candidate values, the first being the default; ``lr_scale`` is a factor of the learning rate.
        init: run, file, ``timm:NAME`` or ``hf:NAME`` whose weights it goes on from.
    """

    name: str
    objective: str
    backbone: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    init: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} cannot name a recipe.", where="recipes",
                             fix="Use up to 60 letters, digits and _ . + - and begin with a letter or a digit.")
        registry.find("objective", self.objective)
        for key, values in self.search.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UsageError(f"The search over '{key}' is no list of values.", where=f"recipe {self.name}",
                                 fix=f"Write {key}: [default, other, ...].")
            if key in self.settings:
                raise UsageError(f"'{key}' is both kept and searched.", where=f"recipe {self.name}",
                                 fix="Leave it in one of settings and search.")
            if key == LR_SCALE and not all(isinstance(v, int | float) and v > 0 for v in values):
                raise UsageError(f"Factors of the learning rate are positive numbers, not {list(values)}.",
                                 where=f"recipe {self.name}")

    def trials(self, most: int) -> list[dict[str, Any]]:
        """The first ``most`` combinations of searched options; the first one is the default of each.

        One option at a time departs from its default before two do, so that few trials say most.
        """
        keys = list(self.search)
        grid = itertools.product(*(range(len(self.search[k])) for k in keys))
        order = sorted(grid, key=lambda at: (sum(i > 0 for i in at), sum(at), at))
        return [{k: self.search[k][i] for k, i in zip(keys, at, strict=True)} for at in order[:most]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON know them."""
        return dict(plain({f.name: getattr(self, f.name) for f in fields(self)}))


def default(objective: str) -> Recipe:
    """The recipe of an objective: its published settings, with the learning rate searched around its own value.

    Raises UsageError for an unknown objective, naming the nearest.
    """
    card = registry.find("objective", objective)
    return Recipe(card.name, card.name, search=dict(DEFAULT_SEARCH))


def rsb_a1() -> Recipe:
    """ResNet strikes back, procedure A1 (Wightman et al. 2021, arXiv:2110.00476, table 2): the longest of the three.

    Labels are smoothed and stay soft: thresholding at 0.2 as in A2 and A3 would undo the smoothing.
    """
    return _rsb("rsb_a1", epochs=600, weight_decay=0.01, mixup=0.2, smoothing=0.1, threshold=-1.0)


def rsb_a2() -> Recipe:
    """ResNet strikes back, procedure A2, of middle length."""
    return _rsb("rsb_a2", epochs=300)


def rsb_a3() -> Recipe:
    """ResNet strikes back, procedure A3, the short one: no repeated augmentation, no stochastic depth."""
    return _rsb("rsb_a3", epochs=100, lr=8e-3, magnitude=6.0, repeats=1, drop_path=0.0)


def _rsb(name: str, *, epochs: int, lr: float = 5e-3, weight_decay: float = 0.02, mixup: float = 0.1,
         smoothing: float = 0.0, threshold: float = 0.2, magnitude: float = 7.0, repeats: int = 3,
         drop_path: float = 0.05) -> Recipe:
    """What the three procedures share; the warm-up of 5 epochs becomes its share of the published length."""
    settings = {"loss": "bce", "augment": "randaugment", "magnitude": magnitude, "crop_min": 0.08, "mixup": mixup,
                "cutmix": 1.0, "smoothing": smoothing, "threshold": threshold, "optimizer": "lamb", "lr": lr,
                "lr_per": 2048, "end_lr": 1e-6 / lr, "weight_decay": weight_decay, "warmup": 5 / epochs,
                "repeats": repeats, "backbone.drop_path": drop_path}
    return Recipe(name, "supervised", settings=settings, search=dict(DEFAULT_SEARCH))


#: recipes with a name of their own, beside the objectives' own ones
NAMED = {"rsb_a1": rsb_a1, "rsb_a2": rsb_a2, "rsb_a3": rsb_a3}


def fitting(modality: str, *, labelled: bool) -> list[Card]:
    """Objectives for the modality; those that learn from labels only where the source of pre-training has them.

    Those that need data read in a way of their own are left out: a tournament reads them once for all.
    """
    return [c for c in registry.cards(kind="objective")
            if registry.fits(c, modality) and (labelled or not c.labels) and not c.switch]


def read_recipes(wish: str | Path | Sequence[str | Recipe], *, modality: str = "image",
                 labelled: bool = False) -> list[Recipe]:
    """Turn what ``--recipes`` says into recipes.

    Args:
        wish: ``all``; names of objectives or of :data:`NAMED` recipes, or ``package.module:function`` of functions that
            return a recipe, comma-separated or as a list that may also hold recipes; or a YAML file with a list of
            recipes or a mapping from names to recipes.
        modality: what ``all`` has to fit.
        labelled: whether the source of pre-training has labels; without them ``all`` leaves out what needs them.

    Raises:
        UsageError: an unknown name (the nearest is suggested), a malformed file, or two recipes of one name.
    """
    if isinstance(wish, str | Path) and str(wish).endswith((".yaml", ".yml")):
        found = list(_from_file(Path(wish)))
    else:
        words = [w.strip() for w in wish.split(",") if w.strip()] if isinstance(wish, str) else wish
        if isinstance(words, Path):
            raise UsageError("A file of recipes is YAML.", where=str(wish), fix="Name it .yaml.")
        found = [r for word in words for r in _named(word, modality, labelled)]
    if not found:
        raise UsageError("There is no recipe to compare.", where="--recipes", fix="Name objectives, e.g. simclr,mae.")
    names = [r.name for r in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two recipes are called '{name}'.", where="--recipes", fix="Rename one of them.")
    return found


def _named(word: str | Recipe, modality: str, labelled: bool) -> list[Recipe]:
    if isinstance(word, Recipe):
        return [word]
    if word == "all":
        return [default(card.name) for card in fitting(modality, labelled=labelled)]
    module, colon, function = word.partition(":")
    if not colon:
        return [NAMED[word]() if word in NAMED else default(word)]
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"'{word}' is no function that can be imported: {error}.", where="--recipes",
                         fix="Write package.module:function.") from error
    if not isinstance(made, Recipe):
        raise UsageError(f"'{word}' returned a {type(made).__name__}, not a Recipe.", where="--recipes")
    return [made]


def _from_file(path: Path) -> Iterator[Recipe]:
    try:
        stored = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"The recipes cannot be read: {error}", where=str(path), fix=_FIX) from error
    if isinstance(stored, Mapping):
        if isinstance(stored.get("recipes"), list | Mapping):
            stored = stored["recipes"]
    if isinstance(stored, Mapping):
        entries = [{"name": str(name), **(values if isinstance(values, Mapping) else {"objective": values or name})}
                   for name, values in stored.items()]
    elif isinstance(stored, list):
        entries = [{"name": e, "objective": e} if isinstance(e, str) else e for e in stored]
    else:
        raise UsageError("The file holds no list or mapping of recipes.", where=str(path), fix=_FIX)
    for entry in entries:
        yield _from_entry(entry, path)


def _from_entry(entry: Any, path: Path) -> Recipe:
    known = [f.name for f in fields(Recipe)]
    if not isinstance(entry, Mapping):
        raise UsageError(f"{entry!r} is no recipe.", where=str(path), fix=f"A recipe has {', '.join(known)}.")
    for key in entry:
        if key not in known:
            raise UsageError(f"A recipe has no '{key}'.{nearest(str(key), known)}", where=str(path),
                             fix=f"A recipe has {', '.join(known)}.")
    values = {"name": entry.get("objective"), "search": dict(DEFAULT_SEARCH), **entry}
    values.setdefault("objective", values["name"])
    if not isinstance(values["objective"], str) or not isinstance(values["name"], str):
        raise UsageError(f"The recipe {values['name']!r:.80} names no objective.", where=str(path), fix=_FIX)
    for key in ("settings", "search"):
        values[key] = values.get(key) or {}
        if not isinstance(values[key], Mapping):
            raise UsageError(f"'{key}' of the recipe '{values['name']}' is no mapping.", where=str(path), fix=_FIX)
    return Recipe(**values)
