"""osteon grows a backbone from your own data and tells you honestly whether it was worth it.

>>> import osteon
>>> osteon.pretrain("photos/", objective="simclr", out="runs/simclr")      # doctest: +SKIP
>>> osteon.evaluate("runs/simclr", train="train.csv", test="test.csv")    # doctest: +SKIP

Each verb is also a shell command with the same name, options and defaults: ``osteon --help``. ``osteon.load`` gives the
backbone of a run, or of an exported folder, with the preprocessing it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osteon.verbs._model import load_trained as load
    from osteon.verbs.adapt import adapt
    from osteon.verbs.analyse import analyse
    from osteon.verbs.bandit import bandit
    from osteon.verbs.compare import compare
    from osteon.verbs.compress import compress
    from osteon.verbs.continual import continual
    from osteon.verbs.demo import demo
    from osteon.verbs.embed import embed
    from osteon.verbs.evaluate import evaluate
    from osteon.verbs.export import export
    from osteon.verbs.forecast import forecast
    from osteon.verbs.incontext import incontext
    from osteon.verbs.match import match
    from osteon.verbs.merge import merge
    from osteon.verbs.methods import methods
    from osteon.verbs.plan import plan
    from osteon.verbs.pretrain import pretrain
    from osteon.verbs.prior import prior
    from osteon.verbs.select import select
    from osteon.verbs.selftrain import selftrain
    from osteon.verbs.staged import staged

__version__ = "0.1.0"
__all__ = ["__version__", "adapt", "analyse", "bandit", "compare", "compress", "continual", "demo", "embed", "evaluate",
           "export", "forecast", "incontext", "load", "match", "merge", "methods", "plan", "pretrain", "prior",
           "select", "selftrain", "staged"]

#: what is not ``osteon.verbs.<name>.<name>``
_ELSEWHERE = {"load": ("osteon.verbs._model", "load_trained")}


def __getattr__(name: str) -> Any:
    """Import a verb on first use, so that ``import osteon`` stays light (PEP 562)."""
    if name in __all__:
        import importlib

        module, attribute = _ELSEWHERE.get(name, (f"osteon.verbs.{name}", name))
        verb = getattr(importlib.import_module(module), attribute)
        globals()[name] = verb
        return verb
    from osteon.core.errors import nearest

    raise AttributeError(f"module 'osteon' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
