"""What osteon can do: methods, demo."""

from __future__ import annotations

from typing import Annotated

import typer

from osteon.cli._common import app, call, done, show, show_json
from osteon.core.errors import UsageError


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
        show_json(verb.as_json(found))
        return
    if not found:
        close = registry.suggest(text)
        raise UsageError(f"No method fits{f' {text!r}' if text else ''}.", where="osteon methods",
                         fix=f"Did you mean {' or '.join(close)}?" if close else "'osteon methods' lists them all.")
    if verb.is_named(found[0], text) or len(found) == 1:
        show(verb.page(found[0]))
        if len(found) > 1:
            show(f"\nAlso on the cards of: {', '.join(card.name for card in found[1:])}")
    else:
        show(verb.table(found))
        show(f"\n{len(found)} methods. 'osteon methods NAME' shows one with its options.")


@app.command(epilog="Example: osteon demo")
def demo(
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for the runs and the report; by default "
                                            "runs/demo, of other modalities runs/demo-MODALITY.")] = None,
    modality: Annotated[str, typer.Option(help="Kind of data: image, sound...; those that are no images run on "
                                          "generated data.")] = "image",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each run. Default: 100, of sets 40, which take 1 "
                                              "to 5 minutes on two cores.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what goes on.")] = False,
) -> None:
    """The whole story on a small data set.

    Pre-trains three recipes on scikit-learn's digits or generated data (no download), evaluates them
    against the controls at several label budgets, and leaves a report.
    """
    done(call("demo", out=out, modality=modality, seeds=seeds, steps=steps, progress=not quiet))
