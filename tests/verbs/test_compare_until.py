"""Pausing a run leaves its schedule and its final weights as they are."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.verbs.pretrain import pretrain

ARGUMENTS = {"objective": "byol", "backbone": "vit_tiny", "steps": 9, "batch_size": 16, "progress": False,
             "report": False, "settings": {"backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 1, "log_every": 1,
                                           "monitor_every": 4, "checkpoint_every": 4}}


def test_a_paused_run_ends_with_the_weights_and_metrics_of_an_undisturbed_one(tmp_path):
    whole = RunFolder(pretrain("digits:train", out=tmp_path / "a", **ARGUMENTS))
    for until in (3, 3, 6, None):
        paused = RunFolder(pretrain("digits:train", out=tmp_path / "b", until=until, **ARGUMENTS))
        _, meta = paused.load_model()
        assert meta["steps"] == (until or 9)
        assert [r["step"] for r in paused.metrics()] == list(range(1, (until or 9) + 1))
    (a, _), (b, _) = whole.load_model(), paused.load_model()
    assert a.keys() == b.keys() and all(np.array_equal(a[k].numpy(), b[k].numpy()) for k in a)
    values = [[(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in run.metrics()] for run in (whole, paused)]
    assert values[0] == values[1]


def test_a_paused_model_is_that_of_its_step_and_time_does_not_run_backwards(tmp_path):
    half = RunFolder(pretrain("digits:train", out=tmp_path / "a", until=5, **ARGUMENTS))
    early, _ = half.load_model()
    pretrain("digits:train", out=tmp_path / "a", **ARGUMENTS)
    late, _ = half.load_model()
    assert any(not np.array_equal(early[k].numpy(), late[k].numpy()) for k in early)
    with pytest.raises(UsageError, match="step 9 already, beyond 5"):
        pretrain("digits:train", out=tmp_path / "a", until=5, **ARGUMENTS)
