"""The page of a tournament: everything it must say, in one file, in a browser and on a phone."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from osteon.report.tournament_page import write_tournament_report

CHROMIUM = os.environ.get("OSTEON_CHROMIUM") or "/usr/bin/chromium"
HOSTILE = "<script>alert(1)</script>"


def tournament(result: dict[str, Any]) -> dict[str, Any]:
    """A complete result of a tournament, from the made-up evaluation; a recipe has a hostile name."""
    arms = [{**a, "source": HOSTILE if a["source"] == "spark" else a["source"]} for a in result["arms"]]
    shares = {"forward": 3.0e8, "backward": 6.0e8, "views": 1.0e7, "teachers": 0.0, "total": 9.1e8}
    costs = [{"name": name, "kind": kind, "budget": "10 min", "steps": steps, "flop": flop, "wall_s": wall,
              "cpu_s": wall * 0.9, "planned_s": wall, "planned_off": 0.0, "off": off, "flag": flag,
              "network": "vit_tiny", "parameters": 190_000,
              "shares": shares if kind != "control" else {}, "options": {"lr_scale": 0.3},
              "batch_size": 64, "pretraining": steps if kind != "control" else 0}
             for name, kind, steps, flop, wall, off, flag in (
                 ("simclr", "pretrained", 1000, 9.1e11, 580.0, -0.03, ""),
                 ("mae", "pretrained", 1400, 8.7e11, 590.0, -0.02, ""),
                 (HOSTILE, "pretrained", 1200, 9.0e11, 702.0, 0.17, "17% over the budget of 10 min"),
                 ("supervised from scratch", "control", 2000, 9.3e11, 595.0, -0.01, ""))]
    rows = [{"budget": b, "pretrained": "simclr + knn", "scratch": "supervised from scratch", "mean": m,
             "low": m - 0.05, "high": m + 0.05, "p": p, "ahead": p < 0.05}
            for b, m, p in ((10, 0.2, 0.001), (100, 0.1, 0.01), ("all", 0.004, 0.6))]
    comparisons = [{"budget": "all", "best": "simclr", "source": s, "evaluator": "knn", "mean": m, "low": m - 0.01,
                    "high": m + 0.01, "p": p, "tie": p >= 0.05} for s, m, p in (("mae", 0.007, 0.4),
                                                                              ("raw pixels", 0.02, 0.01))]
    return {**result, "arms": arms, "costs": costs, "budget": "10 min", "comparisons": comparisons,
            "verdict": {**result["verdict"], "paragraph": result["verdict"]["sentence"] + " Each arm was given 10 min.",
                        "winner": "simclr", "crossing": {"from": "all", "budgets": rows}},
            "agreement": [{"a": "rankme", "b": "knn", "spearman": 0.5, "arms": 3},
                          {"a": "rankme", "b": "linear_probe", "spearman": None, "arms": 3}],
            "halving": [{"rung": 1, "trial": "simclr~1", "recipe": "simclr", "options": {"lr_scale": 0.3}, "step": 333,
                         "score": 0.61, "kept": True},
                        {"rung": 1, "trial": "mae~2", "recipe": "mae", "options": {"lr_scale": 3.0}, "step": 400,
                         "score": None, "kept": False}],
            "search_cost": {"flop": 4.4e11, "wall_s": 300.0},
            "crashed": [{"arm": "pretrain-byol-s1-900", "type": "MonitorStop", "what": f"Loss is NaN {HOSTILE}."}],
            "asked": {"source": "photos/", "budget": {"amount": 600.0, "unit": "seconds"}}}


@pytest.fixture
def page(result, tmp_path) -> Path:
    return write_tournament_report(tournament(result), tmp_path / "report.html")


def test_everything_a_reader_needs_is_said_verdict_first(page):
    text = page.read_text()
    body = text.index("</nav>")
    assert text.index("It pays") < text.index("Each arm was given 10 min") < body
    order = ["Do the measures agree?", "At a glance", "Accuracy against compute", "Against the best",
             "Against training from scratch", "Compute", "Halving", "Arms that failed", "Notes", "As asked for"]
    places = [text.index(f"<h2>{words}<", body) for words in order]
    assert places == sorted(places)
    for words in ("17% over the budget of 10 min", "9.10e+11", "4.40e+11 FLOP", "+0.50", "n/a", "lr_scale=0.3",
                  "caught up", "within 5 %", "RankMe and k-NN", "forward 33 %", "MonitorStop"):
        assert words in text, words
    assert HOSTILE not in text and "&lt;script&gt;" in text


def test_every_arm_has_a_section_that_the_contents_lead_to(page):
    text = page.read_text()
    nav = text[text.index("<nav"):text.index("</nav>")]
    links = dict((name, anchor) for anchor, name in re.findall(r'href="#([^"]+)">([^<]+)<', nav))
    for name in ("simclr", "mae", "&lt;script&gt;alert(1)&lt;/script&gt;", "supervised from scratch"):
        assert f'<section id="{links[name]}"' in text


def test_a_tie_is_named_and_nothing_is_invented_where_parts_are_missing(result, tmp_path):
    full = tournament(result)
    text = write_tournament_report(full, tmp_path / "a.html").read_text()
    row = text[text.index("Against the best</h2>"):]
    assert re.search(r"mae\s*<span class=\"tag tie\">tie", row[:row.index("raw pixels")])
    bare = {**full, "agreement": [], "halving": [], "crashed": [], "comparisons": [], "curves": {}, "environment": {},
            "verdict": {**full["verdict"], "crossing": None}, "search_cost": {"flop": 0.0, "wall_s": 0.0}}
    text = write_tournament_report(bare, tmp_path / "b.html").read_text()
    assert "too few to say" in text
    for words in ("Halving", "Arms that failed", "Against the best", "Against training from scratch"):
        assert f"<h2>{words}" not in text


@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="needs Chromium, named by OSTEON_CHROMIUM")
def test_in_a_browser_it_is_silent_offline_and_no_wider_than_a_phone(page):
    pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python client")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        said: list[str] = []
        asked: list[str] = []
        for width in (360, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 740})
            tab.on("console", lambda m: said.append(m.text))
            tab.on("dialog", lambda d: said.append("dialog"))
            tab.on("request", lambda r: asked.append(r.url))
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator(".verdict").bounding_box()["y"] < 740
            tab.locator("nav a", has_text="mae").first.click()
            assert abs(tab.locator("h2", has_text="mae").first.bounding_box()["y"]) < 740
            assert said == [] and [u for u in asked if not u.startswith(("file:", "data:"))] == []
            tab.close()
        browser.close()
