from __future__ import annotations

import io
import math
import subprocess
import sys
import types

import pytest
import torch

from osteon.core.errors import MissingExtra, UsageError
from osteon.core.run import RunFolder
from osteon.train.loggers import JsonlLogger, TensorBoardLogger, WandbLogger, make_loggers
from osteon.train.progress import Progress


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "my run")
    run.create_or_resume({})
    yield run
    run.close()


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def log(self, values, step):
        self.calls.append(("log", step, values))

    def finish(self):
        self.calls.append("finish")


def test_jsonl_is_always_there(run):
    for names in ("", [], "jsonl", ("jsonl",)):
        loggers = make_loggers(names, run)
        assert [type(x) for x in loggers] == [JsonlLogger]
    loggers[0].log(3, {"loss": torch.tensor(0.5), "note": "x"})
    assert run.metrics() == [{"step": 3, "loss": 0.5, "note": "x"}]
    loggers[0].close()


def test_unknown_logger_is_refused_with_the_nearest(run):
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        make_loggers("jsonl, tensorbord", run)


@pytest.mark.parametrize("kind,module,extra", [(TensorBoardLogger, "torch.utils.tensorboard", "tensorboard"),
                                               (WandbLogger, "wandb", "wandb")])
def test_missing_packages_name_the_extra(run, monkeypatch, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'osteon\[{extra}\]'") as caught:
        kind(run)
    assert caught.value.code == 5


def test_wandb_gets_numbers_and_is_resumed_by_place(run, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for _ in range(2):
        logger = make_loggers(["wandb"], run, {"betas": (0.9, 0.99)})[1]
        logger.log(7, {"loss": torch.tensor(0.5), "note": "text", "rank": 2})
        logger.close()
    (_, first), log, end, (_, second), *_ = fake.calls
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["name"] == "my run" and first["project"] == "osteon" and first["config"] == {"betas": [0.9, 0.99]}
    assert log == ("log", 7, {"loss": 0.5, "rank": 2.0}) and end == "finish"


def test_tensorboard_gets_numbers_at_their_steps(run, monkeypatch):
    events = []

    class Writer:
        def __init__(self, folder, purge_step):
            events.append((folder, purge_step))

        def add_scalar(self, key, value, step):
            events.append((key, value, step))

        def flush(self):
            events.append("flush")

        def close(self):
            events.append("close")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    logger = make_loggers("tensorboard", run)[1]
    logger.close()  # nothing was written: nothing to close
    for step in (40, 50):
        logger.log(step, {"loss": 1.5, "note": "x"})
    logger.close()
    assert events == [(str(run.path / "tensorboard"), 40), ("loss", 1.5, 40), "flush", ("loss", 1.5, 50), "flush",
                      "close"]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_files_can_be_read_back(run):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(run)
    logger.log(3, {"loss": 1.5})
    logger.close()
    found = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in found] == [(3, 1.5)]


# -- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines(seconds_a_step, total=100, done=0, told=None, **options):
    clock, stream = Clock(), io.StringIO()
    with Progress(total, done=told, stream=stream, clock=clock, **options) as progress:
        for step in range(done + 1, total + 1):
            clock.now += seconds_a_step
            progress.update(step, loss=torch.tensor(step / 100), rank=5.25 if step == 1 else None, images=64)
    return stream.getvalue().splitlines()


def test_plain_lines_say_everything_at_measured_intervals():
    found = lines(1.0)
    assert found[0] == "training 1/100  loss 0.01  rank 5.2  64 samples/s  1:39 left"
    assert found[1] == "training 11/100  loss 0.11  rank 5.2  64 samples/s  1:29 left"
    assert found[-1] == "training 100/100  loss 1  rank 5.2  64 samples/s"
    assert len(found) == 11


def test_fast_and_slow_runs_do_not_flood_or_fall_silent():
    assert len(lines(0.001)) == 2
    slow = lines(40.0, total=10_000)
    assert slow[1].startswith("training 2/") and "h" not in slow[0]
    assert lines(60.0)[0].endswith("1:39:00 left")


def test_resumed_runs_estimate_from_their_own_steps():
    assert lines(1.0, done=90)[0].endswith("0:09 left")
    assert lines(1.0, done=90, told=90)[0].endswith("0:09 left")
    assert lines(1.0, done=90, told=90)[-1].startswith("training 100/100")


def test_quiet_and_notes():
    assert lines(10.0, quiet=True) == []
    stream = io.StringIO()
    Progress(3, stream=stream).note("a [note]")
    Progress(3, stream=stream, quiet=True).note("b")
    assert stream.getvalue() == "a [note]\n"


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream, clock = Terminal(), Clock()
    with Progress(4, stream=stream, clock=clock) as progress:
        for step in range(1, 5):
            clock.now += 1.0
            progress.update(step, loss=0.25, rank=3.0, images=8)
        progress.note("a [note]")
    text = stream.getvalue()
    for part in ("training", "4/4", "loss 0.25", "rank 3.0", "8 samples/s", "a [note]"):
        assert part in text


def test_the_loss_is_read_only_when_shown():
    class Loss:
        reads = 0

        def __float__(self):
            Loss.reads += 1
            return 1.0

    clock = Clock()
    with Progress(1000, stream=io.StringIO(), clock=clock) as progress:
        for step in range(1, 1001):
            clock.now += 1e-4
            progress.update(step, loss=Loss())
    assert Loss.reads == 2


def test_loss_that_is_not_finite_is_shown():
    stream = io.StringIO()
    with Progress(1, stream=stream) as progress:
        progress.update(1, loss=math.nan)
    assert "loss nan" in stream.getvalue()


def test_progress_imports_no_torch():
    code = "import sys; import osteon.train.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
