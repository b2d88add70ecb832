"""The page of an adapted run: scores beside a control, costs beside full fine-tuning, nothing taken for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import HOSTILE, make_run
from tests.report.test_hostile_names import _Seen
from tests.report.test_run_page import headings, text_of

from osteon.core.errors import DataError
from osteon.report.adapt_page import write_adapt_report

OWN = {"trainable": 500, "saved_bytes": 3 * 2**20, "optimizer_bytes": 4096, "step_seconds": 0.05}
FULL = {"trainable": 20_000, "saved_bytes": 4 * 2**20, "optimizer_bytes": 163_840, "step_seconds": 0.1}


def adaptation(**other: Any) -> dict[str, Any]:
    """What ``osteon adapt`` leaves; the scores are invented."""
    def around(value: float) -> dict[str, dict[str, float]]:
        return {"accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05}}

    return {"adapter": "svfit", "base": HOSTILE, "labels": 1200, "val_samples": 300, "steps": 40,
            "scores": {"intervals": around(0.8), "values": {
                "accuracy": 0.8, "macro_f1": 0.75, "auroc": None, "per_class_recall": [0.9, None, 0.7],
                "per_class_support": [100, 0, 200]}},
            "controls": {"most frequent class": around(0.4)}, "costs": {"svfit": OWN, "full": FULL},
            "measured_batch": 32, "delta_bytes": 2000, "class_names": ["cat", HOSTILE, "{{ 7*191 }}"],
            "notes": ["LEAK: 3 validation samples are copies of training samples; the scores flatter"], **other}


def written(folder: Path, **other: Any) -> str:
    make_run(folder)
    (folder / "adaptation.json").write_text(json.dumps(adaptation(**other)))
    return write_adapt_report(folder).read_text(encoding="utf-8")


def test_scores_and_costs_stand_beside_their_controls(tmp_path):
    html = written(tmp_path / "probe")
    text = text_of(html)
    assert headings(html) == ["Accuracy", "All scores", "Every class", "What it costs", "Training at a glance", "Loss",
                              "Effective rank of the features", "Terms of the loss", "Monitors", "Configuration",
                              "Skipped", "Chosen automatically", "Environment", "Not on this page"]
    assert "on 1,200 labelled samples in 40 steps and scored on 300 validation samples" in text
    assert text.index("svfit best") < text.index("most frequent class control") and "80.0 % [75.0, 85.0]" in text
    for row in ("Numbers that train 500 20,000 2.5 %", "Kept for the backward pass 3 MiB 4 MiB 75 %",
                "State of the optimiser 4 KiB 160 KiB 2.5 %", "Time of a step 50.0 ms 100.0 ms 50 %",
                "Stored 1.95 KiB 78.1 KiB 2.5 %"):  # 2,000 of 4 * 20,000 bytes
        assert row in text, row
    assert "cat 90.0 % 100" in text and "Macro-F1 75.0 %" in text and "AUROC" not in text
    assert "LEAK: 3 validation samples" in text.split("What it costs")[0], "a leak is told on top"
    assert "`--adapter linear` and `--adapter full`" in text and "Feature standard deviation" in text


def test_full_fine_tuning_stands_alone_and_costs_may_be_missing(tmp_path):
    text = text_of(written(tmp_path / "full", adapter="full", costs={"full": FULL}))
    assert "Numbers that train 20,000 Kept" in text and "Share" not in text and "`--adapter full`" not in text
    html = written(tmp_path / "ranks", costs={})
    assert "What it costs" not in headings(html) and "Costs of a step: they are measured where one" in text_of(html)


def test_nothing_of_the_names_becomes_markup(tmp_path):
    html = written(tmp_path / "run<i>")
    seen = _Seen()
    seen.feed(html)
    assert not seen.tags & {"script", "i", "iframe", "embed", "object", "form", "base"}
    assert not [a for a in seen.attributes if a[1].startswith("on")
                or a[1] in ("href", "src") and not a[2].startswith(("#", "data:"))]
    words = " ".join(seen.text)
    assert HOSTILE in words and "{{ 7*191 }}" in words and "run<i>" in words and "1337" not in words
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)", html), "something is asked of the network"


def test_a_damaged_result_is_named(tmp_path):
    written(tmp_path / "run")
    (tmp_path / "run" / "adaptation.json").write_text("{")
    with pytest.raises(DataError, match="adaptation.json"):
        write_adapt_report(tmp_path / "run")
