"""What grows a backbone: pretrain, plan, staged, prior."""

from __future__ import annotations

from typing import Annotated

import typer

from osteon.cli._common import Source, app, call, done, show, show_json, words_of


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
    run = call("pretrain", source, objective=objective, backbone=backbone, out=out, steps=steps, epochs=epochs,
          batch_size=batch_size, accumulate=accumulate, precision=precision, seed=seed, settings=settings,
          config=config, init=init, guard=guard, loggers=words_of(logger), progress=not quiet)
    done(run)


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
    recipes: Annotated[str | None, typer.Option(help="Plan a tournament, as in compare; so do the next "
                                               "seven.")] = None,
    budget: Annotated[str | None, typer.Option()] = None,
    train: Annotated[str | None, typer.Option(metavar="SOURCE")] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    task: Annotated[str, typer.Option()] = "auto",
    horizon: Annotated[int | None, typer.Option(min=1)] = None,
    context: Annotated[int | None, typer.Option(min=1)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """What will it take?

    Time, memory, compute and the largest batch, from 20 real steps; the data checked; every automatic choice with its
    rule. Takes the arguments of pretrain, or of compare.
    """
    from osteon.core.options import parse_settings

    result = call("plan", source, objective=objective, backbone=backbone, steps=steps, epochs=epochs,
                   batch_size=batch_size, accumulate=accumulate, precision=precision, seed=seed,
                   settings=parse_settings(set_ or []), config=config, init=init, guard=guard, memory=memory,
                   largest=largest, recipes=recipes, budget=budget, train=train, test=test, seeds=seeds, task=task,
                   horizon=horizon, context=context, progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.plan import text

        show(text(result))


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

    result = call("staged", source, stages=words_of(stages), out=out, backbone=backbone, batch_size=batch_size,
                   seed=seed, settings=parse_settings(set_ or []), control=control, progress=not quiet)
    if json:
        show_json(result)
    else:
        for row in (*result["stages"], *([result["control"]] if control else [])):
            done(row["run"])


@app.command(epilog="Example: osteon bandit --out runs/bandit")
def bandit(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the network, bandit.json and bandit.html; a "
                                     "network that lies there already is played.", show_default=False)],
    arms: Annotated[int, typer.Option(min=2, help="Arms of a task, their means uniform in [0, 1].")] = 5,
    noise: Annotated[float, typer.Option(help="Deviation of a reward about its arm's mean.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a task.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps; 3000 take minutes.")] = 3000,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks a step.")] = 64,
    dim: Annotated[int, typer.Option(min=1, help="Width of the network.")] = 32,
    depth: Annotated[int, typer.Option(min=1, help="Its blocks.")] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Its attention heads.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-3,
    tasks: Annotated[int, typer.Option(min=2, help="New tasks that are played.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and training tasks.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every regret.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Train a network to decide in context.

    It learns from logs of generated bandits which arm is best, then plays new ones beside Thompson sampling, upper
    confidence bounds, greed and chance. No data are read here.
    """
    result = call("bandit", out=out, arms=arms, noise=noise, rounds=rounds, steps=steps, batch_size=batch_size, dim=dim,
                  depth=depth, heads=heads, lr=lr, tasks=tasks, seed=seed, progress=not quiet)
    if json:
        show_json(result)
    else:
        from osteon.verbs.bandit import summary

        show(summary(result))
        done(result["report"])


@app.command(epilog="Example: osteon prior --features 16 --classes 4 --out runs/pfn")
def prior(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the network.", show_default=False)],
    features: Annotated[int, typer.Option(min=1, help="Most columns it will read, categories counted by level; wider "
                                          "tables are projected.")] = 16,
    classes: Annotated[int, typer.Option(min=0, help="Most classes it will tell apart; 0: it predicts numbers.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3000,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks a step.")] = 16,
    points: Annotated[int, typer.Option(min=2, help="Rows of a task, labelled or not.")] = 128,
    dim: Annotated[int, typer.Option(min=1, help="Width of the network.")] = 64,
    depth: Annotated[int, typer.Option(min=1, help="Its blocks.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Its attention heads.")] = 4,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and tasks.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """Train a network on generated tables.

    It learns to learn from labelled rows: 'osteon incontext' shows it a table of yours. No data are read here.
    """
    done(call("prior", out=out, features=features, classes=classes, steps=steps, batch_size=batch_size, points=points,
              dim=dim, depth=depth, heads=heads, lr=lr, seed=seed, progress=not quiet))
