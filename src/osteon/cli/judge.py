"""What looks at a backbone: embed, evaluate, forecast, match, incontext, compare, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osteon.cli._common import Run, Source, Target, Task, app, call, done, label_count, show, show_json, words_of


@app.command(epilog="Example: osteon embed runs/simclr photos/ --out features/")
def embed(
    run: Run,
    source: Source,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for features.npy (memory-mapped) and the sample ids.",
                                     show_default=False)],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time; changes speed and memory only.")] = 256,
    like: Annotated[str | None, typer.Option(metavar="SOURCE", help="Of a table with columns the run has never seen "
                                             "(--set names=...): the rows its numbers are standardised by. Default: "
                                             "its own.")] = None,
) -> None:
    """Write the features of a source to disk.

    One row a sample, memory-mapped, with the sample ids beside.
    """
    done(call("embed", run, source, out=out, batch_size=batch_size, like=like))


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
                                         "fine_tune trains the whole network; held_out is what the run's own task "
                                         "costs on --test (perplexity, Chamfer distance, errors of hidden parts), "
                                         "alone without labels.")] = "knn,ncm,linear_probe",
    label_budget: Annotated[str, typer.Option(help="Comma-separated numbers of labelled samples, and "
                                              "all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the labelled subset and of the controls' weights: what "
                                       "intervals are taken over.")] = 3,
    scratch_steps: Annotated[int | None, typer.Option(min=0, help="Steps of training from scratch and of fine-tuning; "
                                                      "0: none. Default: as many as pre-training took.")] = None,
    leaks: Annotated[str, typer.Option(help="When copies of test samples occur in the training or pre-training data: "
                                       "error, drop them from the test, or allow.")] = "error",
    task: Task = "auto",
    target: Target = None,
    head_layer: Annotated[int, typer.Option(min=0, metavar="LAYER", help="Read features behind this layer of the "
                                            "projection head; 0: before it.")] = 0,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for evaluation.json and the report. "
                                            "Default: the run folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every score, its interval and the "
                                       "controls.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Score a run beside automatic controls.

    The controls are raw pixels, the untrained backbone, and training from scratch on the same labels.
    """
    budgets = tuple(label_count(word) for word in words_of(label_budget))
    result = call("evaluate", run if len(run) > 1 else run[0], train=train, test=test, metrics=words_of(metrics),
                  label_budget=budgets, seeds=seeds, scratch_steps=scratch_steps, leaks=leaks, task=task,
                  target=target, head_layer=head_layer, out=out, progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.evaluate import summary

        show(summary(result))
        done(result["report"])


@app.command(epilog="Example: osteon forecast runs/mae ETTh1.csv --horizon 96 --split 8640,2880,2880")
def forecast(
    run: Run,
    source: Source,
    horizon: Annotated[int, typer.Option(min=1, help="Steps ahead.")] = 96,
    period: Annotated[str, typer.Option(help="Of the seasonal forecast, in steps; auto: by the autocorrelation of the "
                                        "training part.")] = "24",
    split: Annotated[str, typer.Option(help="Parts by time: shares such as 0.6,0.2,0.2 or rows such as 8640,2880,2880. "
                                       "Default: those of the model's data.")] = "",
    fit_windows: Annotated[int, typer.Option(min=2, help="At most so many training windows.")] = 1500,
    test_windows: Annotated[int, typer.Option(min=0, help="At most so many test windows; 0: every one.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Untrained networks to compare with.")] = 1,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for forecast.json and forecast.html. Default: "
                                            "the run folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Forecast a series from a frozen backbone.

    Beside the controls its experts demand: a linear map, the seasonal forecast, the last value, and the untrained
    backbone.
    """
    result = call("forecast", run, source=source, horizon=horizon, period=period, split=split, fit_windows=fit_windows,
                   test_windows=test_windows, seeds=seeds, out=out, progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.forecast import summary

        show(summary(result))
        done(result["report"])


@app.command(epilog="Example: osteon match runs/clip --train pairs.csv:train --test pairs.csv:test")
def match(
    run: Run,
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Sets of several modalities to look for; with labels, "
                                      "also the classes to name.", show_default=False)],
    train: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled sets: the mean of a class's examples of "
                                              "one modality names it in the others.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text that names a class, {} standing for "
                                                     "it, where the model reads text; repeat it for more. Default: "
                                                     "three plain ones.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for match.json and match.html. Default: the "
                                            "run folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every score.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Let members of sets find each other, and one modality name the classes of another.

    Recall of the partner and zero-shot accuracy with intervals, beside chance and untrained towers.
    """
    result = call("match", run, test=test, train=train, prompts=prompt or (), out=out, progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.match import summary

        show(summary(result))
        done(result["report"])


@app.command(epilog="Example: osteon incontext runs/pfn --train wine:train --test wine:test")
def incontext(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="A folder of 'osteon prior'.", show_default=False)],
    train: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled table whose rows the network reads.",
                                       show_default=False)],
    test: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled table it is scored on.", show_default=False)],
    label_budget: Annotated[str, typer.Option(help="Comma-separated numbers of labelled rows, and all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the labelled rows: what intervals are taken over.")] = 3,
    context: Annotated[int, typer.Option(min=2, help="Labelled rows read at once; of more, parts are read and their "
                                         "answers averaged.")] = 512,
    leaks: Annotated[str, typer.Option(help="As in 'osteon evaluate': error, drop or allow.")] = "error",
    task: Task = "auto",
    target: Target = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for incontext.json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every score and its "
                                       "interval.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Classify a table, or predict numbers, in one forward pass.

    A network that was trained on a generated prior reads the labelled rows; nothing is fitted to them. Beside it stand
    boosted trees, logistic or ridge regression and boosted random features.
    """
    budgets = tuple(label_count(word) for word in words_of(label_budget))
    result = call("incontext", network, train=train, test=test, label_budget=budgets, seeds=seeds, context=context,
                   leaks=leaks, task=task, target=target, out=out,
                   progress=not quiet)
    if json:
        show_json(result)
        return
    from osteon.verbs.evaluate import summary

    show(summary(result))
    done(None if out is None else Path(out) / "incontext.json")


@app.command(epilog="Example: osteon compare photos/ --train train.csv --test test.csv --recipes simclr,mae,spark "
                   "--budget 10m --out runs/compare")
def compare(
    source: Source,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the tournament. The same command on an existing "
                                     "one goes on, also from several processes.", show_default=False)],
    train: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled source; a part of it is held out to "
                                              "choose on.", show_default=False)] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled source that is looked at once, at the "
                                             "end.", show_default=False)] = None,
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
    task: Annotated[str, typer.Option(help="What labels are: classes, regression (numbers to be predicted), or auto; "
                                      "or forecast: the future of SOURCE, one long series, without --train and "
                                      "--test.")] = "auto",
    target: Target = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps ahead of a forecast. Default: 96.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Steps a forecast sees. Default: the window of the data, "
                                                "by its rule.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the table and the verdict.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Does pre-training pay here?

    Recipes against each other and against controls, at equal compute, on your own data. The answer may be no.
    """
    from osteon.core.options import parse_settings

    budgets = tuple(label_count(word) for word in words_of(label_budget))
    result = call("compare", source, train=train, test=test, recipes=recipes, budget=budget, seeds=seeds, out=out,
                   metrics=words_of(metrics), label_budget=budgets, public=words_of(public), control=words_of(control),
                   settings=parse_settings(set_ or []), trials=trials, finalists=finalists, engine=engine,
                   workers=workers, leaks=leaks, task=task, target=target, horizon=horizon, context=context,
                   progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.compare import table

        show(table(result))
        done(result["report"])


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

    result = call("analyse", run, source, only=words_of(only), against=against, ood=ood, samples=samples, seed=seed,
                   out=out, settings=parse_settings(set_ or []), progress=not quiet)
    if json:
        show_json(result)
        return
    from osteon.verbs.analyse import summary

    show(summary(result))
    done(result["report"])
