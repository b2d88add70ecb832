from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteon.core import atomic
from osteon.core.errors import DataError, InUseError, UsageError
from osteon.core.plain import changes, plain
from osteon.core.run import RunFolder, flatten_state, read_tensors, unflatten_state, write_tensors

CONFIG = {"objective": "mae", "steps": 100, "lr": 1e-3, "betas": (0.9, 0.95), "view": {"size": 32}, "device": "cpu"}


# -- settings ---------------------------------------------------------------------------------------------------------


def test_create_then_resume_with_the_same_settings(tmp_path):
    run = RunFolder(tmp_path / "a" / "run")
    assert run.create_or_resume(CONFIG) is False
    assert run.create_or_resume(CONFIG) is True
    assert run.config() == {**CONFIG, "betas": [0.9, 0.95]}
    assert list(run.config()) == list(CONFIG)  # in the order given


def test_changed_settings_are_all_named_with_old_and_new(tmp_path):
    run = RunFolder(tmp_path)
    run.create_or_resume(CONFIG)
    new = {**CONFIG, "steps": 200, "view": {"size": 48, "crop": True}, "device": "cuda"}
    del new["lr"]
    with pytest.raises(InUseError) as caught:
        run.create_or_resume(new)
    text = str(caught.value)
    for line in ("steps: 100 -> 200", "view.size: 32 -> 48", "view.crop: (not set) -> True", "lr: 0.001 -> (not set)"):
        assert line in text
    assert "device" not in text and "objective" not in text and "betas" not in text
    assert "--out" in caught.value.fix and "--init" in caught.value.fix and caught.value.code == 3
    assert run.config()["steps"] == 100


def test_free_keys_change_without_refusal(tmp_path):
    run = RunFolder(tmp_path)
    run.create_or_resume({**CONFIG, "loggers": ["jsonl"]})
    assert run.create_or_resume({**CONFIG, "device": "cuda", "loggers": [], "threads": 2}) is True


def test_changes_tells_numbers_truth_and_text_apart():
    assert changes({"a": 1, "b": 1, "c": "1e-3", "d": float("nan")},
                   {"a": 1.0, "b": True, "c": "1e-3", "d": float("nan")}) == [("b", 1, True)]
    assert changes({"a": {}}, {"a": {"x": None}}) == [("a", {}, "(not set)"), ("a.x", "(not set)", None)]


def test_a_folder_of_other_things_is_not_filled(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UsageError, match="photo.png"):
        RunFolder(tmp_path).create_or_resume(CONFIG)
    with pytest.raises(UsageError), RunFolder(tmp_path).lock():
        pass
    assert os.listdir(tmp_path) == ["photo.png"]
    with pytest.raises(UsageError, match="a file of that name"):
        RunFolder(tmp_path / "photo.png").create_or_resume(CONFIG)


def test_damaged_config_is_refused(tmp_path):
    for text in ("a: [", "- 1", "\x00"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(DataError):
            RunFolder(tmp_path).create_or_resume(CONFIG)


# -- lock -------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time, os
if sys.argv[2] == "late":  # runs before the lock's own handler: a child that is slow to begin
    os.register_at_fork(after_in_child=lambda: time.sleep(0.7))
from osteon.core.run import RunFolder
with RunFolder(sys.argv[1]).lock():
    if sys.argv[2] != "plain" and os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path, mode="plain"):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("mode", ["plain", "fork", "late"])
def test_a_living_holder_is_named_and_a_killed_one_is_replaced(tmp_path, mode):
    process = holder(tmp_path, mode)
    try:
        with pytest.raises(InUseError, match=f"process {process.pid} on ") as caught, RunFolder(tmp_path).lock():
            pass
        assert caught.value.code == 3 and str(tmp_path) in str(caught.value)
        note = json.loads((tmp_path / "lock").read_text())
        assert note["pid"] == process.pid and set(note) == {"pid", "host", "time", "command"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    # The note of the dead one is still there; an orphaned child of its must not hold the lock either.
    assert json.loads((tmp_path / "lock").read_text())["pid"] == process.pid
    with RunFolder(tmp_path).lock():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_lock_is_exclusive_between_objects_and_reentrant_within_one(tmp_path):
    run, other = RunFolder(tmp_path), RunFolder(tmp_path)
    with run.lock():
        with run.lock():
            pass
        with pytest.raises(InUseError), other.lock():
            pass
    with other.lock():
        pass


def test_lock_is_freed_after_an_error_and_sweeps_leftovers(tmp_path):
    leftover = tmp_path / "checkpoints" / ".step_1.safetensors.1.01234567.tmp"
    leftover.parent.mkdir()
    leftover.touch()
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).lock():
        raise ZeroDivisionError
    assert not leftover.exists()
    with RunFolder(tmp_path).lock():
        pass


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_lines_are_strict_json_on_disk_at_once(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 0, "loss": torch.tensor(1.5), "bad": float("nan"), "far": -math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda c: pytest.fail(c)) == {"step": 0, "loss": 1.5, "bad": "nan",
                                                                         "far": "-inf"}
    row = run.metrics()[0]
    assert math.isnan(row["bad"]) and row["far"] == -math.inf
    run.close()


def test_truncate_keeps_the_steps_done(tmp_path):
    run = RunFolder(tmp_path)
    assert run.metrics() == [] and run.truncate_metrics(0) is None
    run.append_metrics({"event": "start"})
    for step in range(1, 6):
        run.append_metrics({"step": step, "x": float("inf")})
    run.truncate_metrics(3)
    run.append_metrics({"step": 4})
    assert [r.get("step") for r in run.metrics()] == [None, 1, 2, 3, 4]
    assert run.metrics()[1]["x"] == math.inf
    run.truncate_metrics(0)
    assert run.metrics() == [{"event": "start"}]
    run.close()


def test_a_torn_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "lo')
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 2})
    assert [r["step"] for r in run.metrics()] == [0, 2]
    run.truncate_metrics(3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 2}\n'
    run.close()


# -- state ------------------------------------------------------------------------------------------------------------


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


def round_trip(state, path):
    tensors, skeleton = flatten_state(state)
    write_tensors(path, tensors, {"skeleton": skeleton})
    loaded, meta = read_tensors(path)
    return unflatten_state(loaded, meta["skeleton"])


def test_nested_state_comes_back_exactly(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {0: {"step": torch.tensor(3.0), "m": torch.randn(3, 2).bfloat16()}, "0": [1, 2.5, (None, True, "x")],
             "empty": [[], {}, (), "", torch.zeros(0, 3)], "inf": [math.inf, -math.inf, -0.0, 1e-320], True: 0.1 + 0.2,
             "bool": torch.tensor([True, False]), "int": torch.tensor(2**62),
             "u16": torch.tensor([65535], dtype=torch.uint16),
             (1, "a"): 2**70, "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
             "transposed": base.permute(2, 0, 1), "~": {"~": "dict", "items": []}}
    assert same(round_trip(state, tmp_path / "s.safetensors"), state)
    part = base[:, 1]  # neither contiguous nor dense: values come back, packed
    back = round_trip({"part": part}, tmp_path / "s.safetensors")["part"]
    assert torch.equal(back, part) and back.is_contiguous()


def test_shared_tensors_come_back_as_one_and_views_by_value(tmp_path):
    x = torch.arange(6.0)
    back = round_trip({"a": x, "b": [x], "view": x[2:4], "reshaped": x.view(2, 3)}, tmp_path / "s.safetensors")
    assert back["a"] is back["b"][0]
    assert back["view"].tolist() == [2.0, 3.0] and back["reshaped"].tolist() == [[0, 1, 2], [3, 4, 5]]
    back["a"].zero_()
    assert back["view"].tolist() == [2.0, 3.0]
    assert len(flatten_state({"a": x, "b": x})[0]) == 1


def test_keys_1_and_text_1_do_not_clash(tmp_path):
    state = {1: torch.tensor(1), "1": torch.tensor(2), "1'": torch.tensor(3)}
    assert same(round_trip(state, tmp_path / "s"), state)


def test_optimizer_state_resumes_bit_for_bit(tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def train(model, optimizer, steps):
        for i in steps:
            optimizer.zero_grad()
            model(torch.full((1, 3), float(i))).pow(2).sum().backward()
            optimizer.step()

    whole, optimizer = build()
    train(whole, optimizer, range(4))
    half, optimizer = build()
    train(half, optimizer, range(2))
    state = round_trip({"model": half.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s")
    again, optimizer = build()
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(again, optimizer, range(2, 4))
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)


def test_what_cannot_be_saved_is_refused_with_its_place():
    with pytest.raises(UsageError, match="type set.*state.a.1"):
        flatten_state({"a": [0, {1}]})
    with pytest.raises(UsageError, match="Sparse"):
        flatten_state([torch.eye(2).to_sparse()])
    with pytest.raises(DataError, match="state.0"):
        unflatten_state({}, flatten_state([torch.ones(1)])[1])


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                      lambda c: st.lists(c, max_size=3) | st.lists(c, max_size=3).map(tuple)
                      | st.dictionaries(st.integers() | st.text(max_size=3), c, max_size=3), max_leaves=12)


@settings(max_examples=100, deadline=None)
@given(values)
def test_any_plain_structure_round_trips_through_json(value):
    tensors, skeleton = flatten_state(value)
    back = unflatten_state(tensors, json.loads(json.dumps(skeleton, allow_nan=False)))
    if isinstance(value, float) and math.isnan(value):
        assert math.isnan(back)
    else:
        assert repr(back) == repr(value)


# -- tensors on disk --------------------------------------------------------------------------------------------------

STATE = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([True, False]), "n": torch.tensor(7)}


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, STATE, {"x": 1, "y": [1, 2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors, meta = read_tensors(tmp_path / "a")
    assert set(tensors) == set(STATE) and all(torch.equal(tensors[k], STATE[k]) for k in STATE)
    assert meta == {"x": 1, "y": [1, 2]}
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_every_bit_flip_and_every_cut_is_found(tmp_path):
    file = tmp_path / "a"
    write_tensors(file, STATE, {"x": 1})
    data = file.read_bytes()
    changed = 0
    for place in range(len(data)):
        for bit in (0, 5):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1:])
            try:
                tensors, meta = read_tensors(file)
            except DataError:
                continue
            # Only padding may change unseen: what is read must be what was written.
            changed += 1
            assert meta == {"x": 1} and all(torch.equal(tensors[k], STATE[k]) for k in STATE)
    assert changed < 20
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        with pytest.raises(DataError):
            read_tensors(file)
    file.write_bytes(data + b"x")
    with pytest.raises(DataError):
        read_tensors(file)


def test_swapped_names_types_and_shapes_are_found(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    write_tensors(tmp_path / "a", {"x": torch.ones(2, 3), "y": torch.zeros(2, 3)}, {})
    with safe_open(str(tmp_path / "a"), "pt") as file:
        note = file.metadata()
    for other in ({"x": torch.zeros(2, 3), "y": torch.ones(2, 3)}, {"x": torch.ones(3, 2), "y": torch.zeros(2, 3)},
                  {"x": torch.ones(2, 3), "y": torch.zeros(2, 3).int()}, {"x": torch.ones(2, 3)}):
        save_file(other, tmp_path / "b", metadata=note)
        with pytest.raises(DataError, match="checksum"):
            read_tensors(tmp_path / "b")
    save_file({"x": torch.ones(1)}, tmp_path / "b")
    with pytest.raises(DataError, match="checksum is missing"):
        read_tensors(tmp_path / "b")
    with pytest.raises(DataError, match="no such file"):
        read_tensors(tmp_path / "c")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def save(run, step, **options):
    return run.save_checkpoint(step, {"x": torch.full((50,), float(step))}, {"note": step}, **options)


def names(run):
    return sorted(p.name for p in (run.path / "checkpoints").iterdir())


def test_newest_two_and_best_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    assert run.latest_checkpoint() is None and run.best_checkpoint() is None
    for step in (8, 9, 10, 100):
        save(run, step, best=step == 9)
    assert names(run) == ["best.safetensors", "step_00000010.safetensors", "step_00000100.safetensors"]
    step, tensors, meta = run.latest_checkpoint()
    assert (step, meta, tensors["x"][0].item()) == (100, {"note": 100}, 100.0)
    assert run.best_checkpoint()[0] == 9
    save(run, 101, best=True)
    assert run.best_checkpoint()[0] == 101


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged_checkpoints_are_passed_over_with_a_warning(tmp_path, damage):
    run = RunFolder(tmp_path)
    save(run, 1)
    file = save(run, 2)
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-9], "flip": data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "empty": b"",
                      "text": b"not tensors at all"}[damage])
    assert run.latest_checkpoint()[0] == 1
    assert len(run.warnings) == 1 and "step_00000002" in run.warnings[0]
    save(run, 1)  # the damaged future goes once the run has gone on
    assert names(run) == ["step_00000001.safetensors"]


def test_all_damaged_is_none_with_a_warning_each(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2):
        save(run, step).write_bytes(b"")
    assert run.latest_checkpoint() is None and len(run.warnings) == 2


def test_a_failed_save_keeps_the_older_ones(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    save(run, 1)
    save(run, 2)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(atomic.DiskFullError):
        save(run, 3)
    assert names(run) == ["step_00000001.safetensors", "step_00000002.safetensors"]


KILLED = """
import os, sys, torch
from osteon.core.run import RunFolder
torch.set_num_threads(1)
for line in sys.stdin:  # torch is imported once; every line is a fresh process that writes until it is killed
    child = os.fork()
    if child == 0:
        run = RunFolder(sys.argv[1])
        found = run.latest_checkpoint()
        step = found[0] if found else 0
        while True:
            step += 1
            run.save_checkpoint(step, {"x": torch.full((200_000,), float(step))}, {"note": step})
            os.write(1, f"{step}\\n".encode())
    os.write(1, f"child {child}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"gone\\n")
"""


def test_kill_9_during_writes_always_leaves_the_newest_complete_checkpoint(tmp_path):
    chance = random.Random(0)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, bufsize=1) as parent:
        leftovers = 0
        for _ in range(10):
            parent.stdin.write("go\n")
            child, told = 0, 0
            while not (child and told):
                word = parent.stdout.readline().split()
                child, told = (int(word[1]), told) if word[0] == "child" else (child, int(word[0]))
            time.sleep(chance.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            while (word := parent.stdout.readline().strip()) != "gone":
                told = int(word)
            leftovers += any(n.startswith(".") for n in os.listdir(tmp_path / "checkpoints"))
            run = RunFolder(tmp_path)
            step, tensors, meta = run.latest_checkpoint()
            assert step in (told, told + 1)  # told only after it was durable
            assert run.warnings == [] and meta == {"note": step}
            assert torch.equal(tensors["x"], torch.full((200_000,), float(step)))
        parent.stdin.close()
    assert leftovers > 0, "no kill fell into a write: the test shows nothing"
    with RunFolder(tmp_path).lock():
        assert not [n for n in os.listdir(tmp_path / "checkpoints") if n.startswith(".")]


# -- model and documents ----------------------------------------------------------------------------------------------


def test_model_round_trip_and_missing_model(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(DataError, match="not finished"):
        run.load_model()
    tied = torch.nn.Linear(2, 2)
    state = {"a": tied.weight, "b": tied.weight, "c": tied.weight.t()}
    run.save_model(state, {"backbone": {"name": "vit_tiny", "options": {"size": (32, 32)}}, "classes": ["a"]})
    loaded, meta = run.load_model()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    assert meta == {"backbone": {"name": "vit_tiny", "options": {"size": [32, 32]}}, "classes": ["a"]}


def test_documents(tmp_path):
    run = RunFolder(tmp_path)
    run.write_json("provenance.json", {"a": float("nan"), "b": [torch.tensor(1), Path("x")], "c": {2, 1}})
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"a": None, "b": [1, "x"], "c": [1, 2]}

    class Skipped:
        id, reason = "b.png", 'says "no"'

    run.write_skipped([("a,1.png", "cut short"), Skipped()])
    assert (tmp_path / "skipped.csv").read_text() == 'id,reason\n"a,1.png",cut short\nb.png,"says ""no"""\n'
    run.save_tensors("batch.safetensors", {"image": torch.ones(1, dtype=torch.uint16)})
    assert read_tensors(tmp_path / "batch.safetensors")[0]["image"].dtype == torch.uint16


def test_plain_types():
    import numpy as np

    assert plain({"a": np.float32(0.5), 1: np.arange(2), "p": Path("x"), "t": (True, None)}) == {
        "a": 0.5, 1: [0, 1], "p": "x", "t": [True, None]}


def test_how_often_training_writes_may_change_but_not_an_objective_option_of_the_same_name(tmp_path):
    run = RunFolder(tmp_path / "run")
    first = {"train": {"log_every": 10, "lr": 0.1}, "objective_options": {"out": 128}}
    run.create_or_resume(first)
    assert run.create_or_resume({**first, "train": {"log_every": 1, "lr": 0.1}})
    with pytest.raises(InUseError, match=r"objective_options\.out: 128 -> 64"):
        run.create_or_resume({**first, "objective_options": {"out": 64}})
