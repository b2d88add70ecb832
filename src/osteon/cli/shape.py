"""What makes something of data and backbones: select, adapt, selftrain, compress, merge, continual, export."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from osteon.cli._common import Run, Source, Target, Task, app, call, done, show, show_json, words_of


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

    result = call("select", source, method=method, budget=budget, out=out, run=run, target=target, train=train,
                   backbone=backbone, seed=seed, settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        show_json(result)
        return
    for note in result["notes"]:
        show(note)
    show(f"{result['selected']:,} of {result['of']:,} samples chosen. Use them as {result['use']}")
    done(result["out"])


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
    task: Task = "auto",
    target: Target = None,
    head_layer: Annotated[int, typer.Option(min=0, metavar="LAYER", help="Let the encoder end behind this layer of the "
                                            "run's projection head; 0: before it.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the adapter, the "
                                                   "training, the augmentation or the data; repeat it for "
                                                   "more.")] = None,
    logger: Annotated[str, typer.Option(help="Comma-separated: jsonl (always written), tensorboard, wandb.")] = "jsonl",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Turn a backbone into a classifier or a regression, cheaply.

    Leaves a small delta beside its base, scores with intervals, and what a step costs beside full fine-tuning.
    """
    from osteon.core.options import parse_settings

    folder = call("adapt", run, train=train, val=val, adapter=adapter, out=out, steps=steps, epochs=epochs,
                  batch_size=batch_size, lr=lr, seed=seed, label_budget=label_budget, task=task,
                  target=target, head_layer=head_layer, settings=parse_settings(set_ or []),
                  loggers=words_of(logger), progress=not quiet)
    from osteon.verbs.adapt import summary

    show(summary(folder))
    done(folder)


@app.command(epilog="Example: osteon selftrain runs/simclr --train train.csv --pool photos/ --test test.csv --out "
                   "runs/selftrained")
def selftrain(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default=False, help="A run folder, an exported folder, "
                                       "timm:NAME or hf:NAME.")],
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source, small.", show_default=False)],
    pool: Annotated[str, typer.Option(metavar="SOURCE", help="Samples the teacher is to label; labels of their own are "
                                      "never trained on.", show_default=False)],
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled source all scores are measured on; nothing is "
                                      "chosen by it.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the runs, pseudo.csv and selftrain.json.",
                                     show_default=False)],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each fit on labels.")] = 500,
    pool_steps: Annotated[int | None, typer.Option(min=1, help="Those on the pool. Default: as many.")] = None,
    adapter: Annotated[str, typer.Option(help="How all are fitted: see 'osteon methods --kind adapter'.")] = "full",
    min_conf: Annotated[float, typer.Option(help="Least confidence of a pseudo-label.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Peak learning rate. Default: the adapter's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    leaks: Annotated[str, typer.Option(help="Copies of test samples in the pool: error, drop or allow.")] = "error",
    control: Annotated[bool, typer.Option(help="Also run the controls of as many steps or operations.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in adapt, for every "
                                                   "fit.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Learn from a pool that a teacher labelled.

    A fine-tuned teacher labels the pool, the same weights learn that, then the real labels; beside a plain fine-tune of
    as many steps, and pre-training that goes on with as many operations.
    """
    from osteon.core.options import parse_settings

    result = call("selftrain", run, train=train, pool=pool, test=test, out=out, steps=steps, pool_steps=pool_steps,
                  adapter=adapter, min_conf=min_conf, batch_size=batch_size, lr=lr, seed=seed, leaks=leaks,
                  control=control, settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.selftrain import summary

        show(summary(result))
        done(out)


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

    folder = call("compress", run, data=data, method=method, budget=budget, out=out, val=val, seed=seed,
                   settings=parse_settings(set_ or []), progress=not quiet)
    from osteon.verbs.compress import summary

    show(summary(folder))
    done(folder)


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

    folder = call("merge", runs, method=method, out=out, base=base, val=val, train=train, data=data, seed=seed,
                   settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        show_json(json_.loads((Path(folder) / "merging.json").read_text(encoding="utf-8")))
        return
    from osteon.verbs.merge import summary

    show(summary(folder))
    done(folder)


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

    result = call("continual", run, train=train, test=test, tasks=tasks, methods=words_of(method),
                   controls=words_of(controls), epochs=epochs, leaks=leaks, seed=seed,
                   settings=parse_settings(set_ or []), out=out, progress=not quiet)
    if json:
        show_json(result)
        return
    from osteon.verbs.continual import summary

    show(summary(result))
    done(None if out is None else Path(out) / "continual.json")


@app.command(epilog="Example: osteon export runs/simclr --out backbone/")
def export(
    run: Run,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="safetensors; beside it timm, onnx or torch.export; or "
                                         "hub-folder, with a model card. Always with the preprocessing the weights "
                                         "need.")] = "safetensors",
    license_: Annotated[str | None, typer.Option("--license", metavar="NAME", help="Under which you publish the "
                                                 "weights, e.g. apache-2.0. Default: that of the initial weights, "
                                                 "where it is known.")] = None,
    data_license: Annotated[str | None, typer.Option(metavar="NAME", help="Of the training data, where the run does "
                                                     "not know it.")] = None,
) -> None:
    """Write a backbone for use elsewhere.

    It reloads in a fresh process, with the preprocessing its weights need.
    """
    done(call("export", run, out=out, format=format_, license=license_, data_license=data_license))
