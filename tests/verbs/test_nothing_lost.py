"""What users can trust when machines fail: kills, signals, disks, two writers, bad numbers; each through the verb."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from osteon import cli, verbs
from osteon.core import atomic, lock
from osteon.core.provenance import compare_runs
from osteon.core.run import RunFolder
from osteon.train import signals
from osteon.train.loop import Engine

RUN = ("pretrain", "digits:train", "--objective", "simclr", "--backbone", "resnet_tiny", "--steps", "12",
       "--batch-size", "16", "--set", "limit=64", "--set", "checkpoint_every=3", "--set", "log_every=2",
       "--set", "monitor_every=5", "--set", "precision=32")


def osteon(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return int(left.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def left_by(out: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], bytes]:
    """Weights, metrics without the wall time, and the last checkpoint of a run."""
    run = RunFolder(out)
    state = {k: v.contiguous().numpy().tobytes() for k, v in run.load_model()[0].items()}
    rows = [{k: v for k, v in row.items() if k != "images_per_s"} for row in run.metrics()]
    return state, rows, max((out / "checkpoints").glob("step_*")).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert osteon(*RUN, "--out", str(out)) == 0
    return left_by(out)


# -- crash -----------------------------------------------------------------------------------------------------------


def test_kills_hangs_and_other_ranks_lose_nothing():
    """The fast part of `benchmarks.crash`: three kinds of run, and two gloo ranks of which one hangs or both die."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.crash", "3", "--real", "0"], cwd=root, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "3 kills, 0 runs lost" in done.stdout, done.stdout + done.stderr


def test_equal_seeds_leave_equal_bytes_in_different_folders(tmp_path, whole):
    assert osteon(*RUN, "--out", str(tmp_path / "again")) == 0
    assert left_by(tmp_path / "again") == whole


def test_signals_save_in_time_and_leave_with_their_codes(tmp_path, monkeypatch, capsys, whole):
    out, begun = tmp_path / "run", time.monotonic()
    run = Engine.run

    def interrupted(self: Engine, batch: Any, step: Any) -> Any:
        if step.index == 4:
            os.kill(os.getpid(), number)
        return run(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", interrupted)
        number = signal.SIGINT
        assert osteon(*RUN, "--out", str(out)) == 130
    assert time.monotonic() - begun < 10 and "a checkpoint was saved" in said(capsys)
    found = RunFolder(out).latest_checkpoint()
    assert found is not None and found[0] == 5
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_step_that_does_not_end_is_given_up(tmp_path, monkeypatch, capsys, whole, number, code):
    out, begun = tmp_path / "run", time.monotonic()
    run = Engine.run

    def stuck(self: Engine, batch: Any, step: Any) -> Any:
        if step.index == 4:
            os.kill(os.getpid(), number)
            time.sleep(60)
        return run(self, batch, step)

    monkeypatch.setattr(signals, "GRACE", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", stuck)
        assert osteon(*RUN, "--out", str(out)) == code
    assert time.monotonic() - begun < 30
    text = said(capsys)
    assert "did not end in 0.2 s" in text and "checkpoint of step 3 is complete and was kept" in text
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def test_sigterm_where_nothing_trains_unwinds_with_its_code(tmp_path, monkeypatch, capsys):
    def slow(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("osteon.data.source.decode_samples", slow)
    np.save(tmp_path / "a.npy", np.zeros((20, 8, 8), np.uint8))
    assert osteon("pretrain", str(tmp_path / "a.npy"), "--out", str(tmp_path / "run"), "--steps", "2") == 143
    assert "Terminated." in said(capsys) and not list(Path(os.environ["OSTEON_CACHE"]).glob("*.tmp"))


# -- disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few megabytes; where none can be mounted, the tests on it are left out."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def at_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something just before the run's n-th checkpoint is written."""
    save, left = RunFolder.save_checkpoint, [number]

    def acting(self: RunFolder, *args: Any, **options: Any) -> Path:
        left[0] -= 1
        if left[0] == 0:
            act()
        return save(self, *args, **options)

    monkeypatch.setattr(RunFolder, "save_checkpoint", acting)


def fill(disk: Path) -> None:
    """Leave not one free block."""
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_says_what_is_kept_and_the_run_goes_on_when_there_is_room(small_disk, monkeypatch, capsys, whole):
    out = small_disk / "run"
    with monkeypatch.context() as patch:
        at_checkpoint(patch, 3, lambda: fill(small_disk))
        assert osteon(*RUN, "--out", str(out)) == 2
    text = said(capsys)
    assert "No space left" in text and "checkpoint of step 6 is complete and was kept: the same command" in text
    assert osteon(*RUN, "--out", str(out)) == 2  # still full: nothing is spoilt by trying
    assert "Internal" not in said(capsys)
    (small_disk / "filler").unlink()
    assert not list((out / "checkpoints").glob(".*"))
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def test_metrics_on_a_full_disk(small_disk, monkeypatch, capsys, whole):
    out, append = small_disk / "run", RunFolder.append_metrics

    def filling(self: RunFolder, row: Any) -> None:
        if row["step"] == 7:
            row = {**row, "text": "x" * 10_000}  # more than what is left of its last block
            fill(small_disk)
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", filling)
        assert osteon(*RUN, "--out", str(out)) == 2
    text = said(capsys)
    assert "No space left to write metrics.jsonl. The checkpoint of step 6 is complete" in text
    (small_disk / "filler").unlink()
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def test_a_disk_that_becomes_read_only(small_disk, monkeypatch, capsys, whole):
    out = small_disk / "run"

    def mount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    with monkeypatch.context() as patch:
        at_checkpoint(patch, 3, lambda: seal(out))
        assert osteon(*RUN, "--out", str(out)) == 2
    text = said(capsys)
    assert "Read-only file system" in text and "checkpoint of step 6 is complete and was kept" in text
    unseal(out)
    mount("ro")
    assert osteon(*RUN, "--out", str(out)) == 2 and osteon(*RUN, "--out", str(small_disk / "new" / "run")) == 2
    text = said(capsys)
    assert text.count("Read-only file system") == 2 and "choose another --out" in text and "Internal" not in text
    mount("rw")
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def seal(out: Path) -> None:
    """A disk with open files cannot be remounted; a read-only one over the checkpoints can be mounted."""
    folder = str(out / "checkpoints")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def unseal(out: Path) -> None:
    subprocess.run(["umount", str(out / "checkpoints")], check=True)


@pytest.mark.parametrize(("call", "number", "words"), [
    ("fsync", errno.EIO, "Input/output error"), ("fsync", errno.EDQUOT, "quota is used up"),
    ("replace", errno.EACCES, "Permission denied"), ("replace", errno.ENOSPC, "No space left")])
def test_a_failing_disk_keeps_the_newest_complete_checkpoint(tmp_path, monkeypatch, capsys, whole, call, number, words):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_checkpoint(patch, 3, lambda: patch.setattr(atomic.os, call, fail))
        assert osteon(*RUN, "--out", str(out)) == 2
    text = said(capsys)
    assert words in text and "checkpoint of step 6 is complete and was kept" in text and "same command" in text
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [f"step_{n:08d}.safetensors" for n in (3, 6)]
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def test_a_file_that_may_not_grow_is_told(tmp_path, capsys, whole):
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
        code = osteon(*RUN, "--out", str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    text = said(capsys)
    assert code == 2 and "may not grow so large" in text and "No checkpoint had been written yet" in text
    assert osteon(*RUN, "--out", str(tmp_path / "run")) == 0 and left_by(tmp_path / "run") == whole


def test_a_temporary_folder_elsewhere_or_full_does_not_matter(small_disk, tmp_path, monkeypatch, whole, trained):
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    fill(small_disk)
    assert osteon(*RUN, "--out", str(tmp_path / "run")) == 0 and left_by(tmp_path / "run") == whole
    assert osteon("merge", str(trained), str(trained), "--method", "uniform_soup", "--out", str(tmp_path / "m")) == 0


@pytest.mark.parametrize("harm", ["flipped", "cut", "torn"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, whole, harm):
    out = tmp_path / "run"
    assert osteon(*RUN, "--out", str(out)) == 0
    newest = max((out / "checkpoints").glob("step_*"))
    data = newest.read_bytes()
    half = len(data) // 2
    newest.write_bytes({"flipped": data[:half] + bytes([data[half] ^ 16]) + data[half + 1:], "cut": data[:half],
                        "torn": data[:half] + bytes(len(data) - half)}[harm])
    (out / "model.safetensors").unlink()
    capsys.readouterr()
    assert osteon(*RUN, "--out", str(out)) == 0
    text = said(capsys)
    assert f"Checkpoint {newest.name} was passed over" in text and "Resuming from step 9 of 12" in text
    assert left_by(out) == whole


# -- two writers -----------------------------------------------------------------------------------------------------

#: verbs that are refused before they look at their other arguments
SIMPLE = {"evaluate": ("RUN", "--train", "x", "--test", "x", "--out", "OUT"), "embed": ("RUN", "x", "--out", "OUT"),
          "analyse": ("RUN", "x", "--out", "OUT"), "match": ("RUN", "--test", "x", "--out", "OUT"),
          "forecast": ("RUN", "x", "--out", "OUT"), "bandit": ("--out", "OUT"), "prior": ("--out", "OUT"),
          "export": ("RUN", "--out", "OUT"), "continual": ("RUN", "--train", "x", "--test", "x", "--out", "OUT"),
          "incontext": ("x", "--train", "x", "--test", "x", "--out", "OUT"),
          "staged": ("x", "--stages", "mae:1,mae:1", "--out", "OUT"),
          "selftrain": ("RUN", "--train", "x", "--pool", "x", "--test", "x", "--out", "OUT")}
#: verbs that are refused once their input is read
FULL = {"pretrain": (*RUN[1:], "--out", "OUT"),
        "adapt": ("RUN", "--train", "digits:train", "--val", "digits:test", "--adapter", "linear", "--out", "OUT"),
        "compress": ("RUN", "--data", "digits:train", "--method", "int8", "--budget", "bytes=50%", "--out", "OUT"),
        "merge": ("RUN", "RUN", "--method", "uniform_soup", "--out", "OUT")}
#: a tournament's processes share its work, job by job, each under a lock; the demo only calls other verbs
SHARED = {"compare", "demo"}


@pytest.mark.parametrize("verb", [*SIMPLE, *FULL])
def test_a_second_writer_is_refused_naming_the_first(tmp_path, trained, capsys, verb):
    out = tmp_path / "out"
    words = [{"OUT": str(out), "RUN": str(trained)}.get(word, word) for word in {**SIMPLE, **FULL}[verb]]
    with lock.alone(out):
        assert osteon(verb, *words) == 3
    text = said(capsys)
    assert f"in use by process {os.getpid()} on " in text and "--out" in text
    assert not out.exists()  # nothing was written, and what the lock needed is gone


def test_a_second_list_of_ids_is_refused(tmp_path, capsys):
    with lock.alone(tmp_path, name=".ids.csv.lock"):
        assert osteon("select", "digits:train", "--method", "random", "--budget", "10", "--out",
                      str(tmp_path / "ids.csv")) == 3
        assert osteon("select", "digits:train", "--method", "random", "--budget", "10", "--out",
                      str(tmp_path / "others.csv")) == 0
    assert f"process {os.getpid()}" in said(capsys) and sorted(os.listdir(tmp_path)) == ["others.csv"]


def test_every_verb_that_writes_is_among_those_tested():
    writers = set()
    for module in pkgutil.iter_modules(verbs.__path__):
        work = getattr(importlib.import_module(f"osteon.verbs.{module.name}"), module.name, None)
        if module.name[0] != "_" and work is not None and "out" in inspect.signature(work).parameters:
            writers.add(module.name)
    assert writers == {*SIMPLE, *FULL, *SHARED, "select", "leave_one_out"}


def test_a_run_is_evaluated_by_one_process_at_a_time_and_a_dead_one_is_replaced(trained, tmp_path, capsys):
    trained = Path(shutil.copytree(trained, tmp_path / "copy"))
    words = ("evaluate", str(trained), "--train", "digits:train", "--test", "digits:test", "--metrics", "ncm",
             "--label-budget", "20", "--seeds", "1", "--scratch-steps", "0", "--quiet")
    with lock.alone(trained):
        assert osteon(*words) == 3
    (trained / "lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename, "time": "before"}))
    assert osteon(*words) == 0
    assert (trained / "lock").read_text() == ""  # a run keeps its lock file


def test_a_lock_that_its_holder_deletes_is_not_shared_with_a_new_one(tmp_path, monkeypatch):
    """Whoever locked a file that was deleted a moment before must lock the one that takes its place."""
    file, really, deleted = tmp_path / "lock", lock._lock, list[int]()

    def racing(*words: Any) -> int:
        handle = really(*words)
        if not deleted:
            deleted.append(handle)
            file.unlink()
        return handle

    monkeypatch.setattr(lock, "_lock", racing)
    held = lock.take(file)
    assert deleted and json.loads(file.read_text())["pid"] == os.getpid()
    with pytest.raises(Exception, match="in use"):
        lock.take(file)
    lock.release(held)


def test_waiting_for_the_cache_names_who_builds_it(tmp_path, capsys):
    from osteon.data import open_source

    np.save(tmp_path / "a.npy", np.zeros((20, 8, 8), np.uint8))
    open_source(tmp_path / "a.npy")
    cache = Path(os.environ["OSTEON_CACHE"])
    file = next(cache.glob("*.lock"), None)
    if file is None:
        pytest.skip("arrays are not cached")
    for stale in [*cache.glob("*.json")]:
        stale.unlink()
    held = lock.take(file)
    threading.Timer(0.3, lock.release, [held]).start()
    open_source(tmp_path / "a.npy")
    assert f"waiting for process {os.getpid()} on " in said(capsys)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_names_parameter_step_and_ids_and_the_run_goes_on(tmp_path, monkeypatch, capsys,
                                                                                       whole):
    out, gradients = tmp_path / "run", Engine.gradients

    def broken(self: Engine, batch: Any, step: Any) -> Any:
        found = gradients(self, batch, step)
        if step.index == 7:
            grad = self.params[2].grad
            assert grad is not None
            grad.view(-1)[0] = float("inf")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "gradients", broken)
        assert osteon(*RUN, "--out", str(out)) == 4
    text = said(capsys)
    batch = RunFolder(out).path / "failed_batch_rank0.safetensors"
    assert "gradient of '" in text and "is infinite" in text and "step 7, samples digit-" in text
    assert "checkpoint of step 6 is kept" in text and "--init" in text and str(batch) in text.replace(" ", "")
    assert osteon(*RUN, "--out", str(out)) == 0 and left_by(out) == whole


def test_a_sample_that_is_not_finite_is_named(tmp_path, monkeypatch, capsys):
    from osteon.data.dataset import Dataset

    batch = Dataset.batch

    def broken(self: Dataset, index: Any) -> dict[str, Tensor]:
        found = batch(self, index)
        rows = [i for i, row in enumerate(found["index"].tolist()) if row == 5]
        image = found["image"].float()
        image[rows] = float("nan")
        return {**found, "image": image}

    monkeypatch.setattr(Dataset, "batch", broken)
    assert osteon(*RUN, "--out", str(tmp_path / "run")) == 4
    text = said(capsys)
    [name] = text.split("not finite in the input: ")[1].split()[:1]
    assert name.startswith("digit-") and f"samples {name}" in text or f", {name}" in text
    assert "loss" in text and "NaN" in text and "and 8 more" in text


# -- what differed ---------------------------------------------------------------------------------------------------


def test_what_differs_between_two_runs_is_said(tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "a", tmp_path / "b"
    assert osteon(*RUN, "--out", str(first)) == 0
    capsys.readouterr()
    assert osteon(*RUN, "--seed", "1", "--out", str(second)) == 0
    assert compare_runs(first, second) == [("train.seed", 0, 1)]
    monkeypatch.setattr("osteon.core.provenance.versions", lambda: {"torch": "0.1"})
    capsys.readouterr()
    assert osteon(*RUN, "--out", str(first)) == 0
    assert "Since this run began: versions.python" in said(capsys)
    found = RunFolder(first).provenance()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] != "0.1"
    assert any(row[0] == "versions.torch" and row[2] == "0.1" for row in found["resumed"][0]["changed"])
