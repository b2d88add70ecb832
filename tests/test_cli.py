"""The command line: options arrive at the verbs unchanged, errors leave as what, where, fix and an exit code."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from osteon import cli
from osteon.core.errors import DataError, Interrupted, InUseError, MissingExtra, MonitorStop


class Recorder:
    """Stands in for a verb: remembers its call, then returns or raises what the test says."""

    def __init__(self, result: object = None) -> None:
        self.result, self.args, self.options = result, (), {}

    def __call__(self, *args: object, **options: object) -> object:
        self.args, self.options = args, options
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def verb(monkeypatch):
    """Replace a verb's module by one holding a Recorder."""
    def replace(name: str, result: object = None) -> Recorder:
        module, recorder = ModuleType(f"osteon.verbs.{name}"), Recorder(result)
        setattr(module, name, recorder)
        monkeypatch.setitem(sys.modules, f"osteon.verbs.{name}", module)
        return recorder
    return replace


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(words))
    return leaving.value.code


def test_pretrain_passes_every_option(verb):
    pretrain = verb("pretrain", Path("runs/a"))
    assert run("pretrain", "photos", "--objective", "mae", "--backbone", "vit_tiny", "--out", "runs/a", "--steps", "7",
               "--batch-size", "64", "--accumulate", "2", "--precision", "bf16", "--seed", "3", "--set", "ratio=0.5",
               "--set", "norm-pix=false", "--config", "c.yaml", "--init", "timm:x", "--guard", "v.csv",
               "--logger", "jsonl, tensorboard", "--quiet") == 0
    assert pretrain.args == ("photos",)
    assert pretrain.options == {
        "objective": "mae", "backbone": "vit_tiny", "out": "runs/a", "steps": 7, "epochs": None, "batch_size": 64,
        "accumulate": 2, "precision": "bf16", "seed": 3, "settings": {"ratio": 0.5, "norm_pix": False},
        "config": "c.yaml", "init": "timm:x", "guard": "v.csv", "loggers": ("jsonl", "tensorboard"), "progress": False}


def test_evaluate_passes_every_option_and_prints_json(verb, capsys):
    evaluate = verb("evaluate", {"arms": [{"name": "knn", "mean": 0.5}]})
    assert run("evaluate", "r", "--train", "a", "--test", "b", "--metrics", "knn, ncm", "--label-budget", "10,100,all",
               "--seeds", "5", "--scratch-steps", "0", "--leaks", "allow", "--target", "age", "--head-layer", "1",
               "--out", "o", "--json", "-q") == 0
    assert evaluate.args == ("r",)
    assert evaluate.options == {"train": "a", "test": "b", "metrics": ("knn", "ncm"), "label_budget": (10, 100, "all"),
                                "seeds": 5, "scratch_steps": 0, "leaks": "allow", "task": "auto", "target": "age",
                                "head_layer": 1, "out": "o", "progress": False}
    assert json.loads(capsys.readouterr().out) == {"arms": [{"name": "knn", "mean": 0.5}]}
    assert run("evaluate", "r", "s", "--train", "a", "--test", "b", "--json") == 0
    assert evaluate.args == (["r", "s"],)


def test_embed_export_demo_pass_their_options(verb, capsys):
    embed, export, demo = verb("embed", Path("f")), verb("export", Path("e")), verb("demo", Path("d"))
    assert run("embed", "r", "s", "--out", "f", "--batch-size", "8") == 0
    assert (embed.args, embed.options) == (("r", "s"), {"out": "f", "batch_size": 8, "like": None})
    assert run("export", "r", "-o", "e") == 0
    assert (export.args, export.options) == (("r",), {"out": "e", "format": "safetensors", "license": None,
                                                      "data_license": None})
    assert run("demo", "--seeds", "1", "--steps", "9", "-q") == 0
    assert demo.options == {"out": None, "modality": "image", "seeds": 1, "steps": 9, "progress": False}
    assert capsys.readouterr().out.split("\n") == ["Wrote f", "Wrote e", "Wrote d", ""]


@pytest.mark.parametrize(("name", "words"), [
    ("pretrain", ["s", "--out", "o"]), ("embed", ["r", "s", "--out", "o"]),
    ("evaluate", ["r", "--train", "a", "--test", "b", "--json"]), ("export", ["r", "--out", "o"]), ("demo", []),
    ("plan", ["s", "--json"]), ("staged", ["s", "--stages", "mae:1,mae:2", "--out", "o", "--json"]),
    ("compare", ["s", "--train", "a", "--test", "b", "--out", "o", "--json"]),
    ("select", ["s", "--method", "random", "--budget", "1", "--out", "o", "--json"]),
    ("analyse", ["r", "s", "--json"]), ("prior", ["--out", "o"]),
    ("incontext", ["n", "--train", "a", "--test", "b", "--json"]),
    ("continual", ["r", "--train", "a", "--test", "b", "--json"]),
    ("selftrain", ["r", "--train", "a", "--pool", "p", "--test", "b", "--out", "o", "--json"]),
])
def test_shell_and_python_have_the_same_names_and_defaults(verb, name, words):
    real = getattr(__import__("osteon"), name)
    parameters = inspect.signature(real).parameters
    recorder = verb(name, {})
    assert run(name, *words) == 0
    inspect.signature(real).bind(*recorder.args, **recorder.options)  # every option the shell gives is accepted
    for key, value in recorder.options.items():
        default = parameters[key].default
        if default is inspect.Parameter.empty or key == "settings":
            continue
        if f"--{key}" in words:
            assert value == words[words.index(f"--{key}") + 1], key
            continue
        shown = tuple(default) if isinstance(default, list | tuple) else default
        assert value == (str(default) if isinstance(default, Path) else shown), key


@pytest.mark.parametrize(("error", "code"), [
    (DataError("Broken image.", where="a.png", fix="Remove it."), 2), (InUseError("Locked.", where="runs/a"), 3),
    (MonitorStop("Loss is NaN.", where="step 3"), 4), (MissingExtra("timm", "timm", why="timm:NAME"), 5),
    (Interrupted(15, where="runs/a"), 143), (Interrupted(2, where="runs/a"), 130), (KeyboardInterrupt(), 130),
])
def test_errors_leave_as_what_where_fix_and_code(verb, capsys, error, code):
    verb("embed", error)
    assert run("embed", "r", "s", "--out", "o") == code
    seen = capsys.readouterr()
    assert seen.out == "" and "Traceback" not in seen.err
    if not isinstance(error, KeyboardInterrupt):
        lines = [f"Error: {error.what}"]
        lines += [f"  where: {error.where}"] if error.where else []
        lines += [f"  fix: {error.fix}"] if error.fix else []
        assert seen.err.splitlines() == lines


def test_markup_in_messages_is_shown_as_it_is(verb, capsys):
    verb("embed", DataError("No [bold]shape[/bold].", fix="pip install 'osteon[timm]'"))
    run("embed", "r", "s", "--out", "o")
    seen = capsys.readouterr().err
    assert "[bold]shape[/bold]" in seen and "'osteon[timm]'" in seen


def test_an_internal_error_keeps_its_traceback_in_a_file(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    verb("embed", ZeroDivisionError("oh [x]"))
    assert run("embed", "r", "s", "--out", "o") == 1
    seen = capsys.readouterr().err
    assert "ZeroDivisionError: oh [x]" in seen and "Traceback" not in seen
    (file,) = tmp_path.glob("osteon-error-*.txt")
    assert str(file) in seen and "Traceback" in file.read_text() and "ZeroDivisionError" in file.read_text()
    for words in (("--debug", "embed", "r", "s", "--out", "o"), ("embed", "r", "s", "--out", "o", "--debug")):
        assert run(*words) == 1
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["pretrain"], ["pretrain", "s"], ["nonsense"], ["pretrain", "s", "--out", "o", "--no-such"],
    ["pretrain", "s", "--out", "o", "--steps", "0"], ["pretrain", "s", "--out", "o", "--steps", "many"],
    ["pretrain", "s", "--out", "o", "--set", "novalue"], ["methods", "zzzz-nothing"],
    ["methods", "--kind", "objektive"],
    ["evaluate", "r", "--train", "a", "--test", "b", "--label-budget", "0"],
    ["evaluate", "r", "--train", "a", "--test", "b", "--label-budget", "ten"],
])
def test_wrong_use_is_exit_code_2(words, capsys):
    assert run(*words) == 2
    assert capsys.readouterr().err.strip()


def test_methods_lists_shows_and_serialises(capsys):
    assert run("methods", "--kind", "objective") == 0
    assert re.search(r"objective\s+simclr\s+\S", capsys.readouterr().out)
    assert run("methods", "SimCLR") == 0
    page = capsys.readouterr().out
    assert "A Simple Framework for Contrastive Learning" in page and re.search(r"temperature\s+float\s+0\.1", page)
    assert run("methods", "simclr", "--json") == 0
    cards = json.loads(capsys.readouterr().out)
    assert cards[0]["name"] == "simclr" and set(cards[0]) == {
        "kind", "name", "summary", "papers", "modalities", "differs", "rows", "backbones", "labels", "cost", "options",
        "limits", "switch", "evidence"}
    assert {"name": "temperature", "type": "float", "default": 0.1, "required": False}.items() <= next(
        o for o in cards[0]["options"] if o["name"] == "temperature").items()
    assert run("methods", "--paper", "411", "--json") == 0
    assert [card["name"] for card in json.loads(capsys.readouterr().out)] == ["simclr", "ssld"]
    assert run("methods", "no such thing", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_help_shows_an_example_and_the_exit_codes(capsys):
    assert run("--help") == 0
    seen = capsys.readouterr().out
    assert all(re.search(rf"^\s+{code}\s+{re.escape(text[:30])}", seen, re.MULTILINE)
               for code, text in cli.EXIT_CODES.items())
    for name in ("pretrain", "embed", "evaluate", "methods", "export", "demo"):
        assert run(name, "--help") == 0
        assert f"osteon {name}" in capsys.readouterr().out.split("Example", 1)[1]


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from osteon.cli import main; main(['methods', '--json'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before the first line is written
        errors = process.stderr.read().decode()
    assert process.returncode == 0 and errors == ""


def test_python_m_osteon_is_the_command():
    run_ = subprocess.run([sys.executable, "-m", "osteon", "--version"], capture_output=True, text=True, check=True)
    assert run_.stdout == "osteon 0.1.0\n"
