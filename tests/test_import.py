"""The command line and the package stay light: neither imports torch before a verb needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import osteon

HEAVY = ("torch", "numpy", "sklearn", "matplotlib", "pyarrow", "PIL", "lightning_fabric", "timm", "transformers")
PROBE = ("import sys, runpy\n"
         "def modules(): return {m.split('.')[0] for m in sys.modules}\n")


def heavy_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after running ``code``."""
    script = f"{PROBE}{code}\nprint('MODULES', *sorted(modules()))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:]) & set(HEAVY)


def command(*words: str) -> str:
    return (f"sys.argv = ['osteon', *{list(words)!r}]\n"
            "try: runpy.run_module('osteon', run_name='__main__')\n"
            "except SystemExit as leaving: assert not leaving.code, leaving.code")


@pytest.mark.parametrize("code", [
    "import osteon; osteon.__version__; dir(osteon)",
    "import osteon.cli",
    command("--help"), command("--version"), command("pretrain", "--help"), command("evaluate", "--help"),
    command("methods"), command("methods", "simclr"), command("methods", "--json"),
])
def test_light_uses_import_nothing_heavy(code):
    assert heavy_after(code) == set()


def test_the_probe_sees_heavy_packages():
    assert heavy_after("import numpy") == {"numpy"}


def test_verbs_are_found_lazily_and_mistyped_ones_named():
    assert osteon.methods is sys.modules["osteon.verbs.methods"].methods
    assert set(dir(osteon)) >= {"pretrain", "embed", "evaluate", "methods", "export", "demo", "__version__"}
    with pytest.raises(AttributeError, match="Did you mean 'pretrain'"):
        osteon.pretrian  # noqa: B018
