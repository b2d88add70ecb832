"""The verbs in the shell: ``osteon pretrain photos/ --objective simclr --out runs/simclr``.

This file knows names, help and exit codes. What a verb does is in ``osteon/verbs/``, imported when it is called, so
that ``osteon --help`` needs no torch.
"""

from __future__ import annotations

import importlib
import json as json_
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from osteon import __version__
from osteon.core.errors import EXIT_CODES, OsteonError, UsageError

#: ``\b`` keeps the lines of a paragraph as they are.
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
DEBUG = "--debug"

app = typer.Typer(name="osteon", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)

Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=False,
                                       help="Folder of images, manifest (.csv, .parquet), arrays (.npy, .npz), a "
                                            "Hugging Face datasets id, or digits.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint.", show_default=False)]


def _version(value: bool) -> None:
    if value:
        print(f"osteon {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an internal error; goes anywhere.")] = False,
) -> None:
    """Pre-train a backbone on your own data, and find out honestly whether it paid.

    \b
    First run:  osteon demo
    Your data:  osteon pretrain photos/ --objective simclr --out runs/simclr
                osteon evaluate runs/simclr --train train.csv --test test.csv
    """


@app.command(epilog="Example: osteon pretrain photos/ --objective mae --backbone vit_tiny --epochs 50 --out runs/mae")
def pretrain(
    source: Source,
    out: Annotated[str, typer.Option("--out", "-o", help="Run folder. An existing one is resumed exactly; if its "
                                     "settings differ, osteon refuses and names them.", show_default=False)],
    objective: Annotated[str | None, typer.Option(help="What to learn: see 'osteon methods --kind objective'. "
                                                  "Default: simclr.")] = None,
    backbone: Annotated[str | None, typer.Option(help="vit_tiny, vit_mini, vit_small, vit_base, resnet_tiny, "
                                                 "resnet_mini, resnet18, resnet50, timm:NAME or hf:NAME. Default: "
                                                 "auto, by the image size and by what the objective can "
                                                 "train.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps. Default: 100 epochs, at most 10,000 "
                                              "steps.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Passes over the data; give this or --steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step, over all processes and micro-batches. "
                                                   "Default: the largest power of two up to 256 that leaves four steps "
                                                   "an epoch.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Micro-batches a step; exact, or refused. "
                                                   "Default: 1.")] = None,
    precision: Annotated[str | None, typer.Option(help="32 or bf16. Default: bf16 where the hardware gains from "
                                                  "it.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Every random number of the run is a function of it. "
                                             "Default: 0.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the objective, the "
                                                   "training or the data, or backbone.KEY=VALUE; repeat it for "
                                                   "more. Values are YAML. See 'osteon methods NAME'.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="YAML such as a run's config.yaml; options given "
                                               "here win.")] = None,
    init: Annotated[str | None, typer.Option(metavar="RUN", help="Continue from the weights of a run, a checkpoint, "
                                             "timm:NAME or hf:NAME.")] = None,
    guard: Annotated[str | None, typer.Option(metavar="SOURCE", help="With --init: labelled data to watch; when "
                                              "features get worse than they were, the run stops and leaves its best "
                                              "checkpoint. Default: the source's own labels, if any.")] = None,
    logger: Annotated[str, typer.Option(help="Comma-separated: jsonl (always written), tensorboard, wandb.")] = "jsonl",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Grow a backbone from your own data.

    No labels needed. Run again with the same --out, it resumes: same final weights, bit for bit.
    """
    from osteon.core.options import parse_settings

    settings = parse_settings(set_ or [])
    run = _call("pretrain", source, objective=objective, backbone=backbone, out=out, steps=steps, epochs=epochs,
          batch_size=batch_size, accumulate=accumulate, precision=precision, seed=seed, settings=settings,
          config=config, init=init, guard=guard, loggers=_words(logger), progress=not quiet)
    _done(run)


@app.command(epilog="Examples: osteon plan photos/ --objective mae --epochs 50; osteon plan photos/ --recipes "
                   "simclr,mae --train train.csv --test test.csv --budget 10m")
def plan(
    source: Source,
    objective: Annotated[str | None, typer.Option(help="As in pretrain, like all options up to --guard.")] = None,
    backbone: Annotated[str | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    epochs: Annotated[float | None, typer.Option(min=0)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    accumulate: Annotated[int | None, typer.Option(min=1)] = None,
    precision: Annotated[str | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE")] = None,
    init: Annotated[str | None, typer.Option(metavar="RUN")] = None,
    guard: Annotated[str | None, typer.Option(metavar="SOURCE")] = None,
    memory: Annotated[str | None, typer.Option(help="Most memory a run may take, e.g. 4GB. Default: what is free "
                                               "now.")] = None,
    largest: Annotated[bool, typer.Option(help="Also find the largest batch that fits.")] = True,
    recipes: Annotated[str | None, typer.Option(help="Plan a tournament, as in compare; so do the next four.")] = None,
    budget: Annotated[str | None, typer.Option()] = None,
    train: Annotated[str | None, typer.Option(metavar="SOURCE")] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """What will it take?

    Time, memory, compute and the largest batch, from 20 real steps; the data checked; every automatic choice with its
    rule. Takes the arguments of pretrain, or of compare.
    """
    from osteon.core.options import parse_settings

    result = _call("plan", source, objective=objective, backbone=backbone, steps=steps, epochs=epochs,
                   batch_size=batch_size, accumulate=accumulate, precision=precision, seed=seed,
                   settings=parse_settings(set_ or []), config=config, init=init, guard=guard, memory=memory,
                   largest=largest, recipes=recipes, budget=budget, train=train, test=test, seeds=seeds,
                   progress=not quiet)
    if json:
        _print_json(result)
    else:
        from osteon.verbs.plan import text

        _print(text(result))


@app.command(epilog="Example: osteon staged photos/ --stages mae:500,simclr:500 --backbone vit_tiny --out runs/staged")
def staged(
    source: Source,
    stages: Annotated[str, typer.Option(metavar="OBJECTIVE:STEPS,...", help="Two or more, in their order.",
                                        show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the runs.", show_default=False)],
    backbone: Annotated[str | None, typer.Option(help="As in pretrain; it must suit every stage.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step, in every stage.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: 0.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For every stage.")] = None,
    control: Annotated[bool, typer.Option(help="Also spend the same compute on the last objective alone.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Pre-train in stages.

    Each starts from the weights of the one before; beside them, the same compute in the last objective alone. Compare
    the two with 'osteon evaluate'.
    """
    from osteon.core.options import parse_settings

    result = _call("staged", source, stages=_words(stages), out=out, backbone=backbone, batch_size=batch_size,
                   seed=seed, settings=parse_settings(set_ or []), control=control, progress=not quiet)
    if json:
        _print_json(result)
    else:
        for row in (*result["stages"], *([result["control"]] if control else [])):
            _done(row["run"])


@app.command(epilog="Example: osteon embed runs/simclr photos/ --out features/")
def embed(
    run: Run,
    source: Source,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for features.npy (memory-mapped) and the sample ids.",
                                     show_default=False)],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time; changes speed and memory only.")] = 256,
) -> None:
    """Write the features of a source to disk.

    One row a sample, memory-mapped, with the sample ids beside.
    """
    _done(_call("embed", run, source, out=out, batch_size=batch_size))


@app.command(epilog="Example: osteon evaluate runs/simclr --train train.csv --test test.csv --label-budget 10,100,all")
def evaluate(
    run: Annotated[list[str], typer.Argument(metavar="RUN", show_default=False,
                                             help="A run folder, or several: runs of one objective and backbone are "
                                                  "seeds of one recipe.")],
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source the scores are fitted on.",
                                       show_default=False)],
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source they are measured on. Nothing is ever "
                                      "fitted here.", show_default=False)],
    metrics: Annotated[str, typer.Option(help="Comma-separated: see 'osteon methods --kind evaluator'; "
                                         "fine_tune trains the whole network.")] = "knn,ncm,linear_probe",
    label_budget: Annotated[str, typer.Option(help="Comma-separated numbers of labelled samples, and "
                                              "all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the labelled subset and of the controls' weights: what "
                                       "intervals are taken over.")] = 3,
    scratch_steps: Annotated[int | None, typer.Option(min=0, help="Steps of training from scratch and of fine-tuning; "
                                                      "0: none. Default: as many as pre-training took.")] = None,
    leaks: Annotated[str, typer.Option(help="When copies of test samples occur in the training or pre-training data: "
                                       "error, drop them from the test, or allow.")] = "error",
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for evaluation.json and the report. "
                                            "Default: the run folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every score, its interval and the "
                                       "controls.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Score a run beside automatic controls.

    The controls are raw pixels, the untrained backbone, and training from scratch on the same labels.
    """
    budgets = tuple(_budget(word) for word in _words(label_budget))
    result = _call("evaluate", run if len(run) > 1 else run[0], train=train, test=test, metrics=_words(metrics),
                   label_budget=budgets, seeds=seeds, scratch_steps=scratch_steps, leaks=leaks, out=out,
                   progress=not quiet)
    if json:
        _print_json(result)
    else:
        from osteon.verbs.evaluate import summary

        _print(summary(result))
        _done(result["report"])


@app.command(epilog="Example: osteon adapt runs/simclr --train train.csv --val val.csv --adapter lora --out runs/lora")
def adapt(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default=False, help="A run folder, an exported folder, "
                                       "timm:NAME or hf:NAME.")],
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source to learn from.", show_default=False)],
    val: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source the scores are reported on; nothing is "
                                     "fitted on it.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Run folder for the delta. An existing one is resumed.",
                                     show_default=False)],
    adapter: Annotated[str, typer.Option(help="How to adapt: see 'osteon methods --kind adapter'.")] = "lora",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps. Default: 100 epochs, at most 10,000 "
                                              "steps.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Passes over the data; give this or --steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Peak learning rate. Default: the adapter's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random. Default: 0.")] = None,
    label_budget: Annotated[str, typer.Option(metavar="N|all", help="Labelled samples to use, drawn in proportion to "
                                              "the classes.")] = "all",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the adapter, the "
                                                   "training, the augmentation or the data; repeat it for "
                                                   "more.")] = None,
    logger: Annotated[str, typer.Option(help="Comma-separated: jsonl (always written), tensorboard, wandb.")] = "jsonl",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Turn a backbone into a classifier, cheaply.

    Leaves a small delta beside its base, scores with intervals, and what a step costs beside full fine-tuning.
    """
    from osteon.core.options import parse_settings

    folder = _call("adapt", run, train=train, val=val, adapter=adapter, out=out, steps=steps, epochs=epochs,
                   batch_size=batch_size, lr=lr, seed=seed, label_budget=label_budget,
                   settings=parse_settings(set_ or []), loggers=_words(logger), progress=not quiet)
    from osteon.verbs.adapt import summary

    _print(summary(folder))
    _done(folder)


@app.command(epilog="Example: osteon compress runs/simclr --data photos/ --method pela --budget params=0.5 --out "
                   "runs/small")
def compress(
    run: Run,
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Samples to calibrate and, where the method trains, to "
                                      "train on; labels are used to score features.", show_default=False)],
    method: Annotated[str, typer.Option(help="How: see 'osteon methods --kind compressor'.", show_default=False)],
    budget: Annotated[str, typer.Option(help="What the result may cost: params=0.3, flops=50%, latency=5ms or "
                                        "bytes=2MB; a share of the original, or a cost.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Run folder; every other verb takes it.",
                                     show_default=False)],
    val: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled source to score on. Default: a fifth of "
                                            "--data, if that has labels.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method or of "
                                                   "its training (steps=500), calibration=N samples, or control=false; "
                                                   "repeat it for more.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Make a backbone smaller or faster.

    Costs and accuracy before and after, beside random pruning to the same budget. The result also loads with PyTorch
    alone.
    """
    from osteon.core.options import parse_settings

    folder = _call("compress", run, data=data, method=method, budget=budget, out=out, val=val, seed=seed,
                   settings=parse_settings(set_ or []), progress=not quiet)
    from osteon.verbs.compress import summary

    _print(summary(folder))
    _done(folder)


@app.command(epilog="Example: osteon compare photos/ --train train.csv --test test.csv --recipes simclr,mae,spark "
                   "--budget 10m --out runs/compare")
def compare(
    source: Source,
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source; a part of it is held out to choose "
                                       "on.", show_default=False)],
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source that is looked at once, at the end.",
                                      show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the tournament. The same command on an existing "
                                     "one goes on, also from several processes.", show_default=False)],
    recipes: Annotated[str, typer.Option(help="Comma-separated objectives, or package.module:function; all; auto, the "
                                         "large families; or a YAML file of recipes.")] = "auto",
    budget: Annotated[str, typer.Option(help="What one arm may spend on one seed, adaptation included: 10m, 5e15flop "
                                        "or 2000steps.")] = "2000steps",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe in the final.")] = 3,
    metrics: Annotated[str, typer.Option(help="Comma-separated evaluators that read labels, and "
                                         "fine_tune.")] = "knn,linear_probe",
    label_budget: Annotated[str, typer.Option(help="Comma-separated numbers of labelled samples, and "
                                              "all.")] = "all",
    public: Annotated[str, typer.Option(metavar="NAME,...", help="Run folders, timm:NAME or hf:NAME that take part "
                                        "with frozen features.")] = "",
    control: Annotated[str, typer.Option(help="self: also each recipe pre-trained on the images of --train "
                                         "alone.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting for every recipe that "
                                                   "knows it, as in pretrain; repeat it for more.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Most combinations of searched options a recipe.")] = 3,
    finalists: Annotated[int, typer.Option(min=1, help="Most recipes in the final.")] = 6,
    engine: Annotated[str, typer.Option(help="Who does the work: local, slurm or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or jobs at once. Default: one a core.")] = None,
    leaks: Annotated[str, typer.Option(help="When copies of test samples occur in SOURCE or --train: error, drop them "
                                       "from the test, or allow.")] = "error",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the table and the verdict.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Does pre-training pay here?

    Recipes against each other and against controls, at equal compute, on your own data. The answer may be no.
    """
    from osteon.core.options import parse_settings

    budgets = tuple(_budget(word) for word in _words(label_budget))
    result = _call("compare", source, train=train, test=test, recipes=recipes, budget=budget, seeds=seeds, out=out,
                   metrics=_words(metrics), label_budget=budgets, public=_words(public), control=_words(control),
                   settings=parse_settings(set_ or []), trials=trials, finalists=finalists, engine=engine,
                   workers=workers, leaks=leaks, progress=not quiet)
    if json:
        _print_json(result)
    else:
        from osteon.verbs.compare import table

        _print(table(result))
        _done(result["report"])


@app.command(epilog="Examples: osteon methods simclr; osteon methods masked --kind objective --json")
def methods(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", show_default=False,
                                                      help="Words that must all occur on a card, or a name.")] = None,
    kind: Annotated[str | None, typer.Option(help="objective, evaluator, backbone, ...")] = None,
    modality: Annotated[str | None, typer.Option(help="e.g. image")] = None,
    paper: Annotated[str | None, typer.Option(help="Part of a paper's title, or its number.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the cards as a JSON list.")] = False,
) -> None:
    """What osteon can do.

    Each method's card: paper, differences from it, options with types and defaults.
    """
    from osteon.core import registry
    from osteon.verbs import methods as verb

    text = " ".join(words or [])
    found = verb.methods(text, kind=kind, modality=modality, paper=paper)
    if json:
        _print_json(verb.as_json(found))
        return
    if not found:
        close = registry.suggest(text)
        raise UsageError(f"No method fits{f' {text!r}' if text else ''}.", where="osteon methods",
                         fix=f"Did you mean {' or '.join(close)}?" if close else "'osteon methods' lists them all.")
    if verb.is_named(found[0], text) or len(found) == 1:
        _print(verb.page(found[0]))
        if len(found) > 1:
            _print(f"\nAlso on the cards of: {', '.join(card.name for card in found[1:])}")
    else:
        _print(verb.table(found))
        _print(f"\n{len(found)} methods. 'osteon methods NAME' shows one with its options.")


@app.command(epilog="Example: osteon select photos/ --method k_centre --budget 30% --run runs/simclr --out ids.csv")
def select(
    source: Source,
    method: Annotated[str, typer.Option(help="How to choose: see 'osteon methods --kind selector'.",
                                        show_default=False)],
    budget: Annotated[str, typer.Option(metavar="N|30%|auto", show_default=False,
                                        help="Samples to choose; auto where the method finds the number.")],
    out: Annotated[str, typer.Option("--out", "-o", help="List of ids to write (.csv). Every verb takes it as "
                                     "SOURCE@ids.csv.", show_default=False)],
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Run whose features are compared. Default: small "
                                            "pictures of the pixels.")] = None,
    target: Annotated[str | None, typer.Option(metavar="SOURCE", help="What the chosen samples are to resemble "
                                               "(simcore).")] = None,
    train: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labels by id, where SOURCE has none (el2n, "
                                              "grand).")] = None,
    backbone: Annotated[str, typer.Option(help="Network of the scoring trainings (el2n, grand).")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; repeat "
                                                   "it for more.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the ids in order.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Choose the samples worth training on.

    Writes their ids; every other verb takes SOURCE@ids.csv for the samples listed there.
    """
    from osteon.core.options import parse_settings

    result = _call("select", source, method=method, budget=budget, out=out, run=run, target=target, train=train,
                   backbone=backbone, seed=seed, settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        _print_json(result)
        return
    for note in result["notes"]:
        _print(note)
    _print(f"{result['selected']:,} of {result['of']:,} samples chosen. Use them as {result['use']}")
    _done(result["out"])


@app.command(epilog="Example: osteon merge runs/a runs/b runs/c --method greedy_soup --val val.csv --out runs/soup")
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", show_default=False,
                                              help="Runs of one architecture: backbones, or classifiers that 'osteon "
                                                   "adapt' left.")],
    method: Annotated[str, typer.Option(help="How to merge: see 'osteon methods --kind merger'.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Run folder to write.", show_default=False)],
    base: Annotated[str | None, typer.Option(metavar="RUN", help="What the runs were fine-tuned from.")] = None,
    val: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled source on which members and result are "
                                            "scored, and by which some methods choose.")] = None,
    train: Annotated[str | None, typer.Option(metavar="SOURCE", help="A few labelled samples (atlas).")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="Samples to measure batch-norm statistics on. "
                                             "Default: the runs' are averaged.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; repeat "
                                                   "it for more.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with scores and notes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Make one model of several.

    Weights are combined tensor by tensor from disk. Models that do not fit together are refused before anything is
    computed, naming the tensor.
    """
    from osteon.core.options import parse_settings

    folder = _call("merge", runs, method=method, out=out, base=base, val=val, train=train, data=data, seed=seed,
                   settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        _print_json(json_.loads((Path(folder) / "merging.json").read_text(encoding="utf-8")))
        return
    from osteon.verbs.merge import summary

    _print(summary(folder))
    _done(folder)


@app.command(epilog="Example: osteon continual runs/simclr --train train.csv --test test.csv --tasks 5")
def continual(
    run: Run,
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source, cut into tasks by class.",
                                       show_default=False)],
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source all accuracies are measured on.",
                                      show_default=False)],
    tasks: Annotated[int, typer.Option(min=2, help="Number of tasks.")] = 5,
    method: Annotated[str, typer.Option(help="Comma-separated: nmc, seq.")] = "nmc,seq",
    controls: Annotated[str, typer.Option(help="Comma-separated: joint (everything at once), sequential "
                                          "(fine-tuning), sequential_head.")] = "joint,sequential,sequential_head",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over each task, the controls' too.")] = 10,
    leaks: Annotated[str, typer.Option(help="As in 'osteon evaluate': error, drop or allow.")] = "error",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of classes and of training.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of a method, with "
                                                   "several METHOD.KEY=VALUE; repeat it for more.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for continual.json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every accuracy.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Learn classes task by task, and see what is forgotten.

    Beside the methods stand controls: joint training, which sees everything at once, and plain fine-tuning.
    """
    from osteon.core.options import parse_settings

    result = _call("continual", run, train=train, test=test, tasks=tasks, methods=_words(method),
                   controls=_words(controls), epochs=epochs, leaks=leaks, seed=seed,
                   settings=parse_settings(set_ or []), out=out, progress=not quiet)
    if json:
        _print_json(result)
        return
    from osteon.verbs.continual import summary

    _print(summary(result))
    _done(None if out is None else Path(out) / "continual.json")


@app.command(epilog="Example: osteon analyse runs/simclr photos/ --against runs/mae --ood other/")
def analyse(
    run: Run,
    source: Source,
    only: Annotated[str, typer.Option(help="Comma-separated: spectrum, cka, linearity, utilised_rank, "
                                      "signal_propagation, layer_masking, projection_head, ood, intrinsic_dimension. "
                                      "Default: all but the last, which trains networks.")] = "",
    against: Annotated[str | None, typer.Option(metavar="RUN", help="Another run, compared layer by layer.")] = None,
    ood: Annotated[str | None, typer.Option(metavar="SOURCE", help="Samples unlike SOURCE, to be told apart.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Use at most so many samples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="directions=[10,20], "
                                                   "fit_epochs=20 (intrinsic_dimension).")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for analysis.json and analysis.html. Default: "
                                            "the run folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every finding.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Look inside a run: what is healthy, and what is not.

    Every finding stands beside its threshold and where that comes from.
    """
    from osteon.core.options import parse_settings

    result = _call("analyse", run, source, only=_words(only), against=against, ood=ood, samples=samples, seed=seed,
                   out=out, settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        _print_json(result)
        return
    from osteon.verbs.analyse import summary

    _print(summary(result))
    _done(result["report"])


@app.command(epilog="Example: osteon export runs/simclr --out backbone/")
def export(
    run: Run,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="safetensors; beside it timm, onnx or torch.export; or "
                                         "hub-folder, with a model card. Always with the preprocessing the weights "
                                         "need.")] = "safetensors",
) -> None:
    """Write a backbone for use elsewhere.

    It reloads in a fresh process, with the preprocessing its weights need.
    """
    _done(_call("export", run, out=out, format=format_))


@app.command(epilog="Example: osteon demo")
def demo(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the runs and the report.")] = "runs/demo",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run; with the defaults, about 5 minutes on two "
                                       "cores.")] = 100,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """The whole story on a small data set.

    Pre-trains three recipes on scikit-learn's digits (no download), evaluates them against the controls at several
    label budgets, and leaves a report.
    """
    _done(_call("demo", out=out, seeds=seeds, steps=steps, progress=not quiet))


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``osteon`` command: runs it and leaves with one of the documented exit codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    code = 0
    try:
        app([word for word in words if word != DEBUG] or ([] if not debug else ["--help"]), prog_name="osteon")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OsteonError as error:
        code = error.code
        _explain(error)
        if debug:
            traceback.print_exc()
    except KeyboardInterrupt:
        code = 130
        _print("Interrupted.", stderr=True)
    except Exception as error:
        code = 1
        _internal(error, debug)
    sys.exit(code)


def _call(verb: str, *args: Any, **options: Any) -> Any:
    """Import a verb and run it."""
    function = getattr(importlib.import_module(f"osteon.verbs.{verb}"), verb)
    try:
        return function(*args, **options)
    except KeyboardInterrupt:  # Typer would turn it into exit code 1
        _print("Interrupted.", stderr=True)
        raise typer.Exit(130) from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _budget(word: str) -> int | str:
    if word == "all":
        return word
    if not word.isdigit() or int(word) == 0:
        raise UsageError(f"'{word}' is no label budget.", where="--label-budget",
                         fix="Write positive whole numbers and 'all', e.g. 10,100,all.")
    return int(word)


def _done(path: object) -> None:
    """Say where the result lies; under torchrun, once."""
    if isinstance(path, Path | str) and os.environ.get("RANK", "0") == "0":
        _print(f"Wrote {path}")


def _print(what: Any, *, stderr: bool = False) -> None:
    """Print text as it is, or something rich can draw."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=stderr, highlight=False)
    with console.capture() as drawn:
        console.print(what, markup=False, soft_wrap=isinstance(what, str | Text))
    _write(drawn.get(), sys.stderr if stderr else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    """Write and flush. A reader that left early, as in ``osteon methods | head``, is no error."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_json(value: Any) -> None:
    _write(json_.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", sys.stdout)


def _explain(error: OsteonError) -> None:
    """What was wrong, where, and what to do, on stderr."""
    from rich.text import Text

    message = Text.assemble(("Error: ", "bold red"), error.what)
    for label, text in (("where", error.where), ("fix", error.fix)):
        if text:
            message.append_text(Text.assemble((f"\n  {label}: ", "bold"), str(text).strip()))
    _print(message, stderr=True)


def _internal(error: Exception, debug: bool) -> None:
    """A defect of ours: a short message, and the traceback in a file (on the screen with ``--debug``)."""
    text = "".join(traceback.format_exception(error))
    handle, path = tempfile.mkstemp(prefix="osteon-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"osteon {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{text}")
    if debug:
        sys.stderr.write(text)
    _print(f"Internal error: {type(error).__name__}: {error}\n  This is a defect in osteon, please report it with the "
           f"file {path}", stderr=True)

