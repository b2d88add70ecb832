"""The page of an evaluation: the numbers on it are those of the result, chosen by the rule it states."""

from __future__ import annotations

import re

import numpy as np
import pytest

from osteon.report.compare_page import write_evaluation_report
from osteon.report.sections import budget_places, chosen, smooth, verdict_of


def arm(name, evaluator, budget, mean, validation=None, kind="pretrained", half=0.01, **more):
    row = {"name": f"{name} + {evaluator}", "source": name, "evaluator": evaluator, "budget": budget, "kind": kind,
           "mean": mean, "low": mean - half, "high": mean + half, "seeds": [0, 1, 2]}
    return {**row, **({} if validation is None else {"validation": validation}), **more}


def cells(html: str, title: str) -> list[list[str]]:
    """Rows of the table labelled ``title``, tags removed."""
    body = re.search(rf'aria-label="{title}">(.*?)</table>', html, re.S).group(1)
    rows = re.findall(r'<tr role="row">(.*?)</tr>', body, re.S)
    return [[re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", c)).strip()
             for c in re.findall(r"<t[hd].*?</t[hd]>", r, re.S)] for r in rows]


def test_the_whole_page(result, runs, tmp_path):
    path = write_evaluation_report(result, tmp_path, runs)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "At a glance", "More labels", "Leaderboards", "All scores", "Test samples", "Runs", "Loss",
        "Effective rank of the features", "Nearest neighbours", "Map of the features", "Reconstructions", "Notes",
        "Configuration", "Skipped", "Environment"]
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["10 labels", "100 labels", "all labels"]
    assert "<script" not in html and html.count("stroke-dasharray") > 0
    assert len(html) < 1_000_000


def test_an_empty_result_still_gives_a_page_that_says_what_is_missing(tmp_path):
    html = write_evaluation_report({}, tmp_path / "sub" / "page.html", []).read_text(encoding="utf-8")
    assert "Not on this page" in html and "osteon evaluate" in html and "Nothing was skipped." in html


def test_at_a_glance_shows_scores_ties_and_gaps(tmp_path):
    arms = [arm("a", "knn", 10, 0.6), arm("a", "knn", "all", 0.9), arm("b", "knn", 10, 0.595),
            arm("raw", "knn", 10, 0.3, kind="control"), arm("raw", "knn", "all", 0.95, kind="control")]
    html = write_evaluation_report({"arms": arms, "budgets": [10, "all"]}, tmp_path).read_text(encoding="utf-8")
    assert cells(html, "At a glance") == [
        ["Accuracy", "10 labels", "all labels"],
        ["a k-NN", "60.0 % [59.0, 61.0]", "90.0 % [89.0, 91.0]"],
        ["b k-NN", "59.5 % [58.5, 60.5] tie", "–"],
        ["raw control k-NN", "30.0 % [29.0, 31.0]", "95.0 % [94.0, 96.0]"]]
    bold = re.findall(r"<strong>(.*?)</strong>", html)
    assert bold == ["60.0 %", "95.0 %"], "the control leads with all labels, and the table says so"


def test_evaluations_are_chosen_by_held_out_samples_and_never_by_the_test_score():
    arms = [arm("a", "knn", 10, 0.9, validation=0.5), arm("a", "linear_probe", 10, 0.6, validation=0.7),
            arm("raw", "knn", 10, 0.4, validation=0.4, kind="control")]
    kept, note = chosen(arms)
    assert [(k["name"], k["how"], k["mean"]) for k in kept] == [("a", "linear_probe", 0.6), ("raw", "knn", 0.4)]
    assert "held-out" in note
    without = [{k: v for k, v in a.items() if k != "validation"} for a in arms]
    assert len(chosen(without)[0]) == 3 and chosen(without)[1] == ""


def test_all_scores_keeps_every_arm(tmp_path):
    arms = [arm("a", e, 10, 0.5, validation=v, auroc=0.75, macro_f1=0.25, wall_s=65)
            for e, v in (("knn", 0.1), ("ncm", 0.2))]
    html = write_evaluation_report({"arms": arms}, tmp_path).read_text(encoding="utf-8")
    assert cells(html, "All scores")[1:] == [
        ["a", "k-NN", "10 labels", "50.0 % [49.0, 51.0]", "25.0 %", "75.0 %", "1 min 05 s", "3"],
        ["a", "Nearest class mean", "10 labels", "50.0 % [49.0, 51.0]", "25.0 %", "75.0 %", "1 min 05 s", "3"]]


def test_budgets_stand_at_their_number_and_all_at_the_stated_one_or_a_step_further():
    assert budget_places([10, 100, "all"], []) == {"10": 10, "100": 100, "all": 1000}
    assert budget_places([10, 40, "all"], [{"budget": "all", "labels": 1437}]) == {"10": 10, "40": 40, "all": 1437}
    assert budget_places(["all"], []) == {"all": 10}


def test_the_verdicts_numbers_are_written_out():
    verdict = verdict_of({"verdict": {"answer": "pays", "sentence": "s", "numbers": {
        "unit": "accuracy", "level": 0.975, "margin": 0.01, "seeds": 3, "best": {"name": "mae", "mean": 0.9, "low": 0.8,
                                                                                 "high": 0.95}, "gain": 0.07,
        "budgets": [{"budget": 100, "pretrained": "mae + linear_probe", "control": "raw pixels + knn", "mean": -0.021,
                     "low": -0.05, "high": 0.009}]}}})
    assert dict(verdict.numbers) == {
        "Seeds": 3, "Best": ("90.0 %", "[80.0, 95.0] mae"), "Gain": "+7.0 points",
        "Gain with 100 labels": ("-2.1 points", "[-5.0, +0.9] mae, linear probe against raw pixels, k-NN")}
    assert "97.5 %" in verdict.note and "1.0 points" in verdict.note
    assert verdict_of({}) is None and verdict_of({"verdict": {"answer": "pays"}}) is None


@pytest.mark.parametrize("n", [300, 301, 1000])
def test_long_curves_are_averaged_in_equal_stretches(n):
    y = np.arange(n, dtype=float)
    line, per_point = smooth(y, y)
    assert len(line.x) == 300 and per_point == -(-n // 300)
    if n == 1000:
        assert line.y[0] == np.mean([0, 1, 2, 3]) and (line.low[0], line.high[0]) == (0, 3)
    assert smooth([1, 2, 3], [1.0, float("nan"), 3.0])[0].x == [1, 3]
    assert smooth([], [])[0].x == []


def test_a_metric_that_is_no_fraction_is_not_printed_in_percent(tmp_path):
    arms = [arm("a", "knn", 10, 12.5, half=1), arm("b", "knn", 10, 3.25, half=1)]
    html = write_evaluation_report({"arms": arms, "metric": "rankme"}, tmp_path).read_text(encoding="utf-8")
    assert cells(html, "At a glance")[1] == ["a k-NN", "12.5 [11.5, 13.5]"] and "1250" not in html


def test_labels_of_a_gallery_may_hold_the_query_first(tmp_path):
    image = np.zeros((1, 4, 4, 1), np.uint8)
    arrays = {"gallery_query": image, "gallery_neighbours": np.zeros((1, 2, 4, 4, 1), np.uint8),
              "gallery_labels": np.array([["cat", "cat", "dog"]])}
    html = write_evaluation_report({"artefacts": arrays}, tmp_path).read_text(encoding="utf-8")
    assert "50 % of the neighbours shown" in html and "≠ dog" in html
