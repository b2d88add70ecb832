"""Names of classes and files that are markup, from the data through a real run to its page: text, and never more."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteon.report.run_page import write_run_report
from osteon.verbs.pretrain import pretrain

#: What would do something if it were not escaped: in text, in attributes, in drawings, in styles, in templates.
LABELS = ["</td><script>document.title='x1'</script>", "\"><img src=x onerror=\"document.title='x2'\">",
          "'><svg onload=document.title='x3'>", "</style></title><script>document.title='x4'</script>",
          "{{ 7 * 191 }}{% raw %}", "&ltscript&gt&#x3cb", "<!--", "javascript:document.title='x5'"]
FILES = ["<script>document.title='y1'<!--.png", "\" onmouseover=\"document.title='y2'\" x=\".png", "&amp;&quot;<b>.png",
         "a\nb<i>.png"]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of two steps on labelled images with such names; four broken ones are skipped."""
    folder = tmp_path_factory.mktemp("<b>data")
    rng = np.random.default_rng(0)
    rows = [["path", "label"]]
    for i in range(16):
        name = f"{i}<i>.png"
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
        rows.append([name, LABELS[i % len(LABELS)]])
    for name in FILES:
        (folder / name).write_bytes(b"<script>no image</script>")
        rows.append([name, LABELS[0]])
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    run = pretrain(folder / "list.csv", objective="simclr", backbone="vit_tiny", out=folder / "run<i>", steps=2,
                   batch_size=8, progress=False,
                   settings={"max_skipped": 1.0, "backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 2})
    return write_run_report(run)


class _Seen(HTMLParser):
    """Elements, attributes and text of a page as a browser would take them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), list[tuple[str, str, str]](), list[str]()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data) -> None:
        self.text.append(data)


def test_nothing_of_the_names_becomes_markup(page: Path) -> None:
    seen = _Seen()
    seen.feed(page.read_text(encoding="utf-8"))
    found = seen.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not found, f"elements of the page: {found}"
    assert not [a for a in seen.attributes if a[1].startswith("on")], "an event handler"
    assert not [a for a in seen.attributes if a[1] in ("href", "src", "xlink:href", "action")
                and a[2].strip().lower().startswith(("javascript:", "http", "//"))]
    assert not [a for a in seen.attributes if a[1] == "src" and not a[2].startswith("data:image/")]
    text = " ".join(seen.text)
    assert "1337" not in text, "a template was filled in from data"
    for name in (LABELS[0], LABELS[4]):
        assert name[:12] in text, f"{name} is not shown as it is"
    assert "document.title='y1'" in text, "the skipped file is not named"


def test_a_browser_takes_them_for_text(page: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python client")
    from playwright.sync_api import sync_playwright
    from tests.report.test_chromium import ARGS, CHROMIUM, Seen

    if CHROMIUM is None:
        pytest.skip("needs Chromium at /usr/bin/chromium or named by OSTEON_CHROMIUM")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        seen = Seen(browser, page, 1000, 800, "light")
        try:
            title = seen.run("document.title")
            assert not title.startswith(("x", "y"))
            seen.run("document.querySelectorAll('details').forEach(d => d.open = true)")
            seen.run("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover')))")
            assert seen.run("document.title") == title and seen.run("document.scripts.length") == 0
            assert seen.said == [] and [u for u in seen.asked if not u.startswith(("data:", "file:"))] == []
            handlers = ("[...document.querySelectorAll('*')].filter(e => [...e.attributes].some("
                        "a => a.name.startsWith('on'))).length")
            assert seen.run(handlers) == 0
        finally:
            seen.context.close()
            browser.close()
