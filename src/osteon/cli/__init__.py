"""The verbs in the shell: ``osteon pretrain photos/ --objective simclr --out runs/simclr``.

This package knows names, help and exit codes. What a verb does is in ``osteon/verbs/``, imported when it is called, so
that ``osteon --help`` needs no torch.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from typing import Annotated

import typer

from osteon import __version__

from osteon.cli import learn, judge, shape, catalogue  # isort: skip - the order of the commands in the help
from osteon.cli._common import EPILOG, app, show, stopped
from osteon.core.errors import EXIT_CODES, OsteonError, Terminated

__all__ = ["EPILOG", "EXIT_CODES", "app", "catalogue", "judge", "learn", "main", "shape"]

DEBUG = "--debug"


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


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``osteon`` command: runs it and leaves with one of the documented exit codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    code = 0
    _end_in_order()
    try:
        app([word for word in words if word != DEBUG] or ([] if not debug else ["--help"]), prog_name="osteon")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OsteonError as error:
        code = error.code
        _explain(error)
        if debug:
            traceback.print_exc()
    except KeyboardInterrupt as stop:
        code = stopped(stop)
    except Exception as error:
        code = 1
        _internal(error, debug)
    sys.exit(code)


def _end_in_order() -> None:
    """Let SIGTERM unwind as Ctrl-C does, so that half-written files are removed; training handles it by itself."""
    def terminate(_number: int, _frame: object) -> None:
        raise Terminated

    # Not where a caller has a handler of its own, or outside the main thread; never in processes forked later.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _explain(error: OsteonError) -> None:
    """What was wrong, where, and what to do, on stderr."""
    from rich.text import Text

    message = Text.assemble(("Error: ", "bold red"), error.what)
    for label, text in (("where", error.where), ("fix", error.fix)):
        if text:
            message.append_text(Text.assemble((f"\n  {label}: ", "bold"), str(text).strip()))
    show(message, stderr=True)


def _internal(error: Exception, debug: bool) -> None:
    """A defect of ours: a short message, and the traceback in a file (on the screen with ``--debug``)."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="osteon-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"osteon {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{text}")
        where = f"file {path}"
    except OSError:  # no temporary folder, or a full one
        where = f"traceback that {DEBUG} shows"
    if debug:
        sys.stderr.write(text)
    show(f"Internal error: {type(error).__name__}: {error}\n  This is a defect in osteon, please report it with the "
           f"{where}", stderr=True)
