"""The page of a run: what is there is shown, what is missing is named with the way to get it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.report.run_page import key_figures, read_arrays, summary, write_run_report


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("</style>")[1]))


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_a_complete_run(run_folder):
    html = write_run_report(run_folder).read_text(encoding="utf-8")
    assert headings(html) == ["Loss", "Effective rank of the features", "Terms of the loss", "Monitors",
                              "Nearest neighbours", "Map of the features", "Reconstructions", "Configuration",
                              "Skipped", "Chosen automatically", "Environment", "Not on this page"]
    text = text_of(html)
    assert "Not evaluated yet" in text and "osteon evaluate my-run" in text
    assert "vit_tiny was pre-trained with mae on photos/ for 500 steps." in text
    assert "a,b.png" in text and "train.lr" in text and "size=8: as stored" in text
    assert "<script" not in html


def test_a_run_that_has_hardly_begun_says_how_to_get_the_rest(run_folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
    html = write_run_report(bare).read_text(encoding="utf-8")
    assert headings(html) == ["Configuration", "Not on this page"]
    lines = re.findall(r"<p>(.*?)</p>", html)
    assert [line.split(":")[0] for line in lines] == ["Verdict", "Curves", "Nearest neighbours", "Map of the features",
                                                      "Reconstructions", "Skipped samples", "Environment"]


def test_an_evaluation_puts_its_verdict_on_top(run_folder, result):
    stored = {k: v for k, v in result.items() if k != "artefacts"}
    (run_folder / "evaluation.json").write_text(json.dumps(stored))
    html = write_run_report(run_folder).read_text(encoding="utf-8")
    assert "It pays" in html and "Not evaluated yet" not in html
    order = headings(html)
    assert order[0] == "What was done" and order.index("At a glance") < order.index("Training at a glance")


def test_figures_and_summary_can_be_recomputed():
    rows = [{"step": i, "loss": 10.0 - i, "images_per_s": 100.0 + i} for i in range(1, 10)]
    rows[4]["loss"] = float("nan")
    assert key_figures(rows) == [("Steps", "9"), ("Last loss", "1"), ("Images a second", "105"),
                                 ("Steps with a NaN or infinite loss", "1")]
    assert summary({"backbone": {"name": "vit_tiny"}, "objective": "mae"}, rows) == (
        "vit_tiny was pre-trained with mae for 9 steps. The loss went from 9 to 1.")
    assert summary({}, []) == "A backbone was pre-trained." and key_figures([]) == []


def test_a_step_logged_twice_counts_once_with_its_later_value(run_folder):
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 500, "loss": 77.0}\n')
    html = write_run_report(run_folder).read_text(encoding="utf-8")
    assert re.search(r"<dt>Steps</dt><dd>500</dd>", html) and re.search(r"<dt>Last loss</dt><dd>77</dd>", html)


def test_pickled_arrays_are_refused(run_folder):
    np.savez(run_folder / "artefacts.npz", map_xy=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        write_run_report(run_folder)


def test_damaged_files_are_named(run_folder, tmp_path):
    assert read_arrays(tmp_path / "none.npz") == {}
    (run_folder / "artefacts.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="artefacts.npz"):
        write_run_report(run_folder)
    (run_folder / "artefacts.npz").unlink()
    (run_folder / "provenance.json").write_text("{")
    with pytest.raises(DataError, match="provenance.json"):
        write_run_report(run_folder)
    with pytest.raises(DataError, match="config.yaml"):
        write_run_report(tmp_path / "nowhere")
