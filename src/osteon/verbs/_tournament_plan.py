"""What a tournament is about to do: checked before anything is computed, written once, and the same on every resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from osteon.core import lock, registry
from osteon.core.atomic import write_text
from osteon.core.errors import DataError, InUseError, UsageError, nearest
from osteon.core.options import settle
from osteon.core.plain import changes, plain
from osteon.data import Dataset, open_source
from osteon.data.leaks import TRANSDUCTIVE, transductive
from osteon.data.source import list_source
from osteon.data.targets import check_task
from osteon.recipes import LR_SCALE, Recipe, read_recipes
from osteon.verbs._arms import make_task
from osteon.verbs._labelled import fitting, open_pair
from osteon.verbs._pretrain_settings import DATA_SETTINGS, STATED, data_settings, sort_settings
from osteon.verbs._tournament_ahead import FORECAST, READERS, check_ahead, open_ahead
from osteon.verbs._tournament_budget import Budget, Price, off_by, parse_budget, steps_within
from osteon.verbs._tournament_study import Trial
from osteon.verbs.evaluate import LEAKS, WHOLE, _budget, _listed, _sort_metrics, check_leaks
from osteon.verbs.pretrain import lasting

#: why a forecast has no labelled data
PARTS = "the parts of the series by time are training, validation and test data"
#: what ``auto`` compares: the large families of objectives, each by its best-known method
AUTO = ("simclr", "byol", "vicreg", "mae", "simmim", "spark")
#: controls on request
CONTROLS = ("self",)
#: share of the budget that goes to fine-tuning where that is asked for
ADAPTATION = 0.2
#: evaluators where nothing is asked
METRICS = ("knn", "linear_probe")
#: what a tournament's folder may hold
NAMES = frozenset({"plan.json", "jobs", "runs", "features", "scores", "slurm", "study.journal", "study.lock", "lock",
                   "tournament.json", "report.html"})


@dataclass(frozen=True)
class Wish:
    """What :func:`osteon.compare` was asked for, checked as far as it can be without opening data.

    A tournament on forecasting has a horizon, and neither ``train`` nor ``test``.
    """

    source: str
    train: str
    test: str
    recipes: str | Path | Sequence[str | Recipe]
    budget: Budget
    seeds: int
    metrics: tuple[str, ...]
    label_budget: tuple[int | str, ...]
    public: tuple[str, ...]
    control: tuple[str, ...]
    settings: Mapping[str, Any]
    trials: int
    finalists: int
    leaks: str
    task: str = "auto"
    target: str | None = None
    horizon: int | None = None


def check_wish(source: str | Path, *, train: str | Path | None, test: str | Path | None, recipes: Any,
               budget: str | Budget, seeds: int, metrics: Sequence[str], label_budget: Sequence[int | str],
               public: Sequence[str], control: Sequence[str], settings: Mapping[str, Any] | None, trials: int,
               finalists: int, leaks: str, task: str = "auto", target: str | None = None, horizon: int | None = None,
               context: int | None = None) -> Wish:
    """Check the arguments of a tournament one by one. Raises UsageError for the first that makes no sense."""
    for option, value in (("--seeds", seeds), ("--trials", trials), ("--finalists", finalists)):
        if value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}.", where=option)
    if leaks not in LEAKS:
        raise UsageError(f"'{leaks}' is no way to treat leaks.", where="--leaks", fix=f"Use {', '.join(LEAKS)}.")
    names = tuple(_listed(metrics))
    common: dict[str, Any] = {"recipes": AUTO if recipes == "auto" else recipes, "budget": parse_budget(budget),
                              "seeds": seeds, "trials": trials, "finalists": finalists, "leaks": leaks, "task": task}
    if task == FORECAST:
        foreign = {"--train": (train, PARTS), "--test": (test, PARTS),
                   "--target": (target, "all channels are forecast"),
                   "--label-budget": (_listed(label_budget) != ["all"], "every step of a series is its own label"),
                   "--public": (public, "'osteon forecast' scores a run that is there already"),
                   "--control": (control, "pre-training sees the training part alone as it is"),
                   "--leaks": (leaks != "error", "parts by time share no step")}
        found = check_ahead(str(source), horizon=horizon, context=context, settings=dict(settings or {}), metrics=names,
                            usual=METRICS, foreign=foreign)
        return Wish(train="", test="", label_budget=("all",), public=(), control=(), **found, **common)
    if horizon is not None or context is not None:
        raise UsageError("A horizon and a context are those of a forecast.", where="--horizon, --context",
                         fix="Add --task forecast, and leave --train and --test out.")
    if train is None or test is None:
        raise UsageError("A tournament needs labelled data to judge by.", where="--train, --test",
                         fix="Give both; or --task forecast, which judges by the future of one long series.")
    check_task(task, target, FORECAST)
    readers, *others = _sort_metrics(names, None)
    if any(others) or not readers:
        raise UsageError("A tournament ranks by evaluators that read labels.", where="--metrics",
                         fix="Use e.g. knn,linear_probe; label-free scores are always shown beside them.")
    controls = tuple(_listed(control))
    for name in controls:
        if name not in CONTROLS:
            raise UsageError(f"There is no control '{name}'.{nearest(name, CONTROLS)}", where="--control",
                             fix="Raw pixels, statistics, untrained and from-scratch networks always run; 'self' adds "
                                 "pre-training on the labelled images alone.")
    budgets = tuple(_budget(b) for b in _listed(label_budget))
    if not budgets:
        raise UsageError("There is no label budget.", where="--label-budget", fix="Write e.g. 10,100,all.")
    return Wish(str(source), str(train), str(test), metrics=names, label_budget=budgets, public=tuple(_listed(public)),
                control=controls, settings=dict(settings or {}), target=target, **common)


def make_plan(root: Path, wish: Wish, say: Callable[[str], None]) -> dict[str, Any]:
    """Open the data, look for leaks, settle recipes and trials, and write ``plan.json``; or check that it is the same.

    Raises:
        InUseError: the folder holds a tournament with other settings; every changed one is named.
        UsageError: recipes or settings that do not fit, or a folder that holds something else.
        DataError: data that cannot be used, or leaks.
    """
    wish = _with_label(wish)
    source, data = _open(wish)
    pair = None if wish.horizon is not None else open_pair(wish.train, wish.test, source.spec, wish.task, wish.target)
    for note in source.notes:
        say(note)
    wanted = wish.recipes
    if wanted is AUTO:
        wanted = [name for name in AUTO if registry.fits(registry.find("objective", name), source.modality)]
    recipes = read_recipes(wanted, modality=source.modality, labelled=source.labels is not None)
    common = {r.name: check_recipe(r, wish.settings, recipes, labelled=source.labels is not None,
                                   modality=source.modality) for r in recipes}
    asked = {"source": lasting(wish.source), **({} if pair is None else {"train": lasting(wish.train),
                                                                         "test": lasting(wish.test)}),
             "budget": asdict(wish.budget), "seeds": wish.seeds, "metrics": list(wish.metrics),
             "label_budget": list(wish.label_budget), "public": [lasting(p) for p in wish.public],
             "control": list(wish.control), "settings": dict(wish.settings), "trials": wish.trials,
             "finalists": wish.finalists, "leaks": wish.leaks,
             **({"task": wish.task, "target": wish.target} if (wish.task, wish.target) != ("auto", None) else {}),
             **({} if wish.horizon is None else {"horizon": wish.horizon}),
             "recipes": {r.name: r.as_dict() for r in recipes},
             "data": {"source": source.fingerprint, **({} if pair is None else {"train": pair[0].fingerprint,
                                                                                "test": pair[1].fingerprint})}}
    file = root / "plan.json"
    if file.exists():
        return _stored(file, asked)
    _refuse_foreign(root)
    judged = _judged_ahead(source, wish, say) if pair is None else _judged(source, *pair, wish, recipes, common)
    plan = plain({"asked": asked, "data": data, "recipes": [r.as_dict() for r in recipes], "common": common,
                  "trials": _trials(recipes, wish), "fine_tune": WHOLE in wish.metrics, "modality": source.modality,
                  **judged})
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        if file.exists():  # another process was faster
            return _stored(file, asked)
        write_text(file, json.dumps(plan, indent=1) + "\n")
    return dict(plan)


def _judged(source: Dataset, train: Dataset, test: Dataset, wish: Wish, recipes: Sequence[Recipe],
            common: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How labels judge: readers, test samples that are left when copies are out, whether images are mirrored, notes."""
    kept, notes = _without_leaks(source, train, test, wish.leaks,
                                 labelled=any(registry.find("objective", r.objective).labels for r in recipes))
    flip = all({**common[r.name], **r.settings}.get("flip") is not False for r in recipes)
    place = {name: i for i, name in enumerate(test.ids)}
    task = make_task(train, kept, list(wish.label_budget), wish.seeds, flip=flip)  # refuses what cannot be evaluated
    readers, left = fitting(_sort_metrics(wish.metrics, None)[0], task)
    return {"readers": readers, "flip": bool(flip), "notes": [*notes, *left],
            "test_rows": None if kept is test else [place[i] for i in kept.ids]}


def _judged_ahead(source: Dataset, wish: Wish, say: Callable[[str], None]) -> dict[str, Any]:
    """How the future judges; refuses a series that is too short for it."""
    notes = open_ahead(source, int(wish.horizon or 0), wish.seeds).task.notes
    for note in notes:
        say(note)
    return {"readers": list(READERS), "flip": False, "test_rows": None, "notes": notes}


def _stored(file: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    stored = dict(json.loads(file.read_text(encoding="utf-8")))
    different = changes(stored["asked"], plain(asked))
    if different:
        lines = "\n".join(f"  {key}: {before} -> {value}" for key, before, value in different)
        raise InUseError(f"The tournament was begun with other settings:\n{lines}\n", where=str(file.parent),
                         fix="Choose another --out.")
    return stored


def _open(wish: Wish) -> tuple[Dataset, dict[str, Any]]:
    """The source of pre-training, and the settings it was opened with."""
    data = {k: v for k, v in wish.settings.items() if k.removeprefix("data.") in data_settings()}
    data = {k.removeprefix("data."): v for k, v in data.items()}
    data = {k: v for k, v in data.items() if k not in STATED}  # which stay in the plan, among the settings
    return open_source(wish.source, **{**DATA_SETTINGS, **data}), data


def _with_label(wish: Wish) -> Wish:
    """The target of a table is no input of pre-training either: it is the label there too."""
    if wish.target is None or "label" in wish.settings or list_source(wish.source).modality != "table":
        return wish
    return replace(wish, settings={**wish.settings, "label": wish.target})


def check_recipe(recipe: Recipe, settings: Mapping[str, Any], recipes: Sequence[Recipe], *, labelled: bool,
                 modality: str = "") -> dict[str, Any]:
    """Those of the common settings that concern a recipe; all of its settings and searched values are checked.

    Raises UsageError for a setting nobody knows, a value that does not fit, or an objective whose labels are missing.
    """
    card = registry.find("objective", recipe.objective)
    if modality:
        registry.need(card, modality, where=f"recipe {recipe.name}")
    if card.labels and not labelled:
        raise UsageError(f"'{card.name}' learns from labels; the source of pre-training has none.",
                         where=f"recipe {recipe.name}", fix="Leave it out: training on labels is among the controls.")
    mine = {}
    for key, value in settings.items():
        if key.removeprefix("data.") in data_settings() or _knows(recipe, key):
            mine[key] = value
        elif not any(_knows(r, key) for r in recipes):
            sort_settings({key: value}, recipe.objective)  # raises, naming the nearest
    if any(k.removeprefix("data.") in data_settings() for k in recipe.settings):
        raise UsageError("Settings of the data hold for all recipes.", where=f"recipe {recipe.name}",
                         fix="Give them with --set.")
    mine = {k: v for k, v in mine.items() if k not in recipe.settings and k not in recipe.search}
    for options in recipe.trials(most=10_000):
        every = {**mine, **recipe.settings, **{k: v for k, v in options.items() if k != LR_SCALE}}
        chosen = sort_settings(every, recipe.objective)
        settle(registry.options(card), chosen["objective"], where=f"recipe {recipe.name}")
        for key in ("steps", "epochs", "seed"):
            if key in chosen["train"]:
                raise UsageError(f"'{key}' is the tournament's to choose.", where=f"recipe {recipe.name}",
                                 fix="Use --budget and --seeds.")
    return mine


def _knows(recipe: Recipe, key: str) -> bool:
    try:
        sort_settings({key: None}, recipe.objective)
    except UsageError:
        return False
    return True


def _trials(recipes: Sequence[Recipe], wish: Wish) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for recipe in recipes:
        for i, options in enumerate(recipe.trials(wish.trials)):
            found.append({"number": len(found), "name": recipe.name if i == 0 else f"{recipe.name}~{i}",
                          "recipe": recipe.name, "options": options})
    for recipe in recipes if "self" in wish.control else ():
        found.append({"number": len(found), "name": f"{recipe.name}~self", "recipe": recipe.name, "options": {},
                      "source": lasting(wish.train)})
    return found


def searched(plan: Mapping[str, Any]) -> list[Trial]:
    """The trials among which halving chooses."""
    return [Trial(t["number"], t["name"], t["recipe"], t["options"]) for t in plan["trials"] if "source" not in t]


def _without_leaks(source: Dataset, train: Dataset, test: Dataset, leaks: str, *,
                   labelled: bool) -> tuple[Dataset, list[str]]:
    """The test part without copies of what is trained on (with labels or not), and what was found."""
    test, notes = check_leaks([], train, test, leaks)
    if source.fingerprint == train.fingerprint:
        return test, notes
    if transductive(test.spec) and not labelled:
        return test, [*notes, TRANSDUCTIVE]
    try:
        test, more = check_leaks([], source, test, leaks)
    except DataError as error:
        raise DataError(error.what.replace("--train", "SOURCE"), where=error.where, fix=error.fix) from None
    return test, [*notes, *(n.replace("--train", "SOURCE") for n in more if n not in notes)]


def _refuse_foreign(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UsageError("The output is to be a folder, but a file of that name exists.", where=str(root),
                         fix="Choose another --out.")
    if root.is_dir():
        foreign = sorted(e.name for e in root.iterdir() if e.name not in NAMES and e.name[0] != ".")
        if foreign:
            raise UsageError(f"The folder is not empty and holds no tournament (it has {foreign[0]!r}).",
                             where=str(root), fix="Choose another --out.")


class _alone:
    """Hold the folder for the moments in which the plan is made; a second process waits for the first."""

    def __init__(self, root: Path) -> None:
        self.file = root / "lock"

    def __enter__(self) -> None:
        while True:
            with suppress(InUseError):
                self.handle = lock.take(self.file)
                return
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        lock.release(self.handle)


# -- what the budget buys ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Allotment:
    """What one arm does with its budget on one seed.

    Args:
        steps: of pre-training; 0 for training from scratch.
        supervised: steps of training the network on labels, one for each label budget; empty for frozen features.
        price: planned cost of everything, at each label budget.
        off: largest share by which it departs from the budget.
    """

    steps: int
    supervised: tuple[int, ...]
    price: tuple[Price, ...]
    off: float


def allot(budget: Budget, known: Mapping[str, Any], *, read: int, fine_tune: bool, what: str) -> Allotment:
    """Divide an arm's budget between pre-training, reading features and fine-tuning.

    Args:
        budget: for all of it.
        known: what the probe measured.
        read: labelled images, train and test, whose features are read.
        fine_tune: whether the network is fine-tuned as well, on a fifth of the budget.
        what: name of the arm, for messages.
    """
    reading = _price(known["image"], steps=0).times(read)
    share = ADAPTATION * budget.amount if fine_tune else 0.0
    tuned = [_price(s) for s in known["supervised"]] if fine_tune else []
    counts = tuple(steps_within(budget, share, price, what=f"fine-tuning {what}") for price in tuned)
    step = _price(known["step"])
    steps = steps_within(budget, budget.amount - share - reading.of(budget.unit), step, what=what)
    base = step.times(steps) + reading
    prices = tuple(base + p.times(n) for p, n in zip(tuned, counts, strict=True)) or (base,)
    return Allotment(steps, counts, prices, _worst(budget, prices))


def allot_scratch(budget: Budget, known: Mapping[str, Any], *, read: int, what: str) -> Allotment:
    """The same budget for training the network from scratch: all of it goes to the labels, at each label budget.

    Args:
        budget: for all of it.
        known: what the probe of a recipe with this network measured.
        read: images that are scored at the end.
        what: name of the arm, for messages.
    """
    reading = _price(known["image"], steps=0).times(read)
    each = [_price(s) for s in known["supervised"]]
    counts = tuple(steps_within(budget, budget.amount - reading.of(budget.unit), price, what=what) for price in each)
    prices = tuple(price.times(n) + reading for price, n in zip(each, counts, strict=True))
    return Allotment(0, counts, prices, _worst(budget, prices))


def _price(measured: Mapping[str, float], *, steps: int = 1) -> Price:
    return Price(float(measured["flop"]), float(measured["seconds"]), steps)


def _worst(budget: Budget, prices: Sequence[Price]) -> float:
    return float(max((off_by(budget, p.of(budget.unit)) for p in prices), key=abs))


