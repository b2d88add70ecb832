"""What the commands share: the application, arguments they have in common, and how they print."""

from __future__ import annotations

import importlib
import json as json_
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from osteon.core.errors import EXIT_CODES, Terminated, UsageError

#: ``\b`` keeps the lines of a paragraph as they are.
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
DEBUG = "--debug"
app = typer.Typer(name="osteon", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=False,
                                       help="Folder of images, manifest (.csv, .parquet), arrays (.npy, .npz), a "
                                            "Hugging Face datasets id, or digits.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint.", show_default=False)]

Task = Annotated[str, typer.Option("--task", help="What labels are: classes, regression (numbers to be predicted), or "
                                   "auto: regression where they are more than 20 distinct numbers, not all whole.")]
Target = Annotated[str | None, typer.Option("--target", metavar="COLUMN", help="The column of numbers to be predicted, "
                                            "in the place of labels.")]


def call(verb: str, *args: Any, **options: Any) -> Any:
    """Import a verb and run it."""
    function = getattr(importlib.import_module(f"osteon.verbs.{verb}"), verb)
    try:
        return function(*args, **options)
    except KeyboardInterrupt as stop:  # Typer would turn it into exit code 1
        raise typer.Exit(stopped(stop)) from None


def stopped(stop: KeyboardInterrupt) -> int:
    """Tell about a signal that ended a command where there was nothing to save; its exit code."""
    ended = isinstance(stop, Terminated)
    show("Terminated." if ended else "Interrupted.", stderr=True)
    return 143 if ended else 130


def words_of(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def label_count(word: str) -> int | str:
    if word == "all":
        return word
    if not word.isdigit() or int(word) == 0:
        raise UsageError(f"'{word}' is no label budget.", where="--label-budget",
                         fix="Write positive whole numbers and 'all', e.g. 10,100,all.")
    return int(word)


def done(path: object) -> None:
    """Say where the result lies; under torchrun, once."""
    if isinstance(path, Path | str) and os.environ.get("RANK", "0") == "0":
        show(f"Wrote {path}")


def show(what: Any, *, stderr: bool = False) -> None:
    """Print text as it is, or something rich can draw."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=stderr, highlight=False)
    with console.capture() as drawn:
        console.print(what, markup=False, soft_wrap=isinstance(what, str | Text))
    write(drawn.get(), sys.stderr if stderr else sys.stdout)


def write(text: str, stream: TextIO) -> None:
    """Write and flush. A reader that left early, as in ``osteon methods | head``, is no error."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_json(value: Any) -> None:
    write(json_.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", sys.stdout)
