"""The pages in a real browser: offline, silent, no wider than a phone, the verdict in sight, nothing executed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from osteon.report.compare_page import write_evaluation_report
from osteon.report.run_page import write_run_report

pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python client")
CHROMIUM = os.environ.get("OSTEON_CHROMIUM") or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None)
pytestmark = pytest.mark.skipif(CHROMIUM is None or shutil.which(CHROMIUM or "") is None,
                                reason="needs Chromium at /usr/bin/chromium or named by OSTEON_CHROMIUM")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run"]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


class Seen:
    """A page opened offline, and everything it said or asked for."""

    def __init__(self, browser, path: Path, width: int, height: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme,
                                           offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(50)

    def run(self, script: str):
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def paths(result, runs, tmp_path_factory):
    import importlib.util

    spec = importlib.util.spec_from_file_location("report_samples", Path(__file__).with_name("conftest.py"))
    samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samples)
    folder = tmp_path_factory.mktemp("pages")
    return {"evaluation": write_evaluation_report(result, folder / "evaluation.html", runs),
            "run": write_run_report(samples.make_run(folder / "run")),
            "bare run": write_run_report(samples.make_run(folder / "bare", full=False))}


SCREENS = [("evaluation", 390, 844, "light"), ("evaluation", 320, 640, "light"), ("evaluation", 800, 600, "light"),
           ("evaluation", 1280, 800, "dark"), ("run", 390, 844, "dark"), ("run", 1280, 800, "light"),
           ("bare run", 390, 844, "light")]


@pytest.mark.parametrize(("which", "width", "height", "scheme"), SCREENS)
def test_a_page_on_a_screen(browser, paths, which, width, height, scheme):
    seen = Seen(browser, paths[which], width, height, scheme)
    try:
        assert seen.said == [], "console errors, page errors or dialogs"
        outside = [url for url in seen.asked if url != paths[which].as_uri() and not url.startswith("data:")]
        assert outside == [], "requests to anything but the file itself"
        assert seen.run("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        seen.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert seen.run("document.documentElement.scrollWidth") <= width, "unfolded, the page scrolls sideways"
        box = seen.page.locator(".sentence").bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= height, "the verdict is below the fold"
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    finally:
        seen.context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_class_named_like_a_script_is_text(browser, paths, width):
    seen = Seen(browser, paths["evaluation"], width, 844, "light")
    try:
        assert seen.run("document.scripts.length") == 0 and seen.said == []
        texts = seen.run("[...document.querySelectorAll('th, figcaption, .legend span, svg text')]"
                         ".map(e => e.textContent)")
        assert sum(SCRIPT in t or t.startswith("<script>alert") for t in texts) > 5
    finally:
        seen.context.close()


def test_every_table_and_drawing_is_there_and_in_sight(browser, paths):
    for width, wide in ((1280, True), (390, False)):
        seen = Seen(browser, paths["evaluation"], width, 844, "light")
        try:
            seen.run("document.querySelectorAll('details').forEach(d => d.open = true)")
            labels = seen.run("[...document.querySelectorAll('table')].map(t => (t.closest('[aria-label]') || "
                              "t.closest('section').querySelector('h2, h3')).textContent.length > 0 && t.rows.length)")
            assert len(labels) >= 10 and all(n >= 2 for n in labels)
            assert seen.run("[...document.querySelectorAll('table')].every(t => t.offsetHeight > 20)")
            sizes = seen.run("[...document.querySelectorAll('svg.chart')].map(s => [s.closest('.wide') ? 'wide' : "
                             "s.closest('.narrow') ? 'narrow' : 'both', s.getBoundingClientRect().height])")
            hidden = "narrow" if wide else "wide"
            assert {kind for kind, _ in sizes} == {"wide", "narrow", "both"}
            assert all((height == 0) == (kind == hidden) for kind, height in sizes)
            assert seen.run("document.querySelector('svg.map').getBoundingClientRect().height") > 100
            rows = seen.run("[...document.querySelectorAll('svg.bars')].map(s => s.getBoundingClientRect().width)")
            assert len(rows) == 18 and min(rows) > 150
            assert seen.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            small = seen.run("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
                             ".filter(h => h > 0 && h < 9).length")
            assert small == 0, "text in drawings stays legible"
        finally:
            seen.context.close()


def test_colours_follow_the_preferred_scheme(browser, paths):
    ground = {}
    for scheme in ("light", "dark"):
        seen = Seen(browser, paths["evaluation"], 800, 600, scheme)
        ground[scheme] = seen.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
                                  ".slice(0, 3).reduce((a, b) => a + b)")
        contrast = seen.run("""(() => {
            const lum = c => { const v = c.match(/\\d+/g).slice(0, 3).map(x => { x /= 255;
                return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
                return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
            const g = lum(getComputedStyle(document.body).backgroundColor);
            const words = 'p, th, td, small, dt, dd, nav a, figcaption, .tag, .answer';
            return [...document.querySelectorAll(words)].map(e => {
                const l = lum(getComputedStyle(e).color);
                return (Math.max(l, g) + 0.05) / (Math.min(l, g) + 0.05); }); })()""")
        assert min(contrast) >= 4.5, "WCAG AA"
        seen.context.close()
    assert ground["light"] > 600 > 150 > ground["dark"]
