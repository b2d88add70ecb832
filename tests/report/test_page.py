"""The page as a document: every string escaped, every table headed, nothing asked of the network, written whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.report.page import Arm, Cell, Report, Series, Verdict

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


class Outline(HTMLParser):
    """Tags in order, their attributes, the text, and whether they are nested properly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for t, attrs in self.tags if t == tag]


def everything() -> Report:
    """A report where every string a caller can give is hostile."""
    image = np.zeros((4, 4, 3), np.uint8)
    r = Report(EVIL, Verdict(EVIL, EVIL, {EVIL: (EVIL, EVIL), "n": 3}, EVIL), footer=EVIL)
    r.text(EVIL, [EVIL], note=EVIL)
    cell = Cell(EVIL, EVIL, EVIL, EVIL, EVIL)
    r.table(EVIL, [EVIL, EVIL], [[EVIL, EVIL], [cell, cell]], EVIL)
    r.curves(EVIL, [Series(EVIL, [1, 2], [1, 2], [0, 1], [2, 3]), Series(EVIL, [1, 2], [1, 2], control=True)], EVIL,
             EVIL, note=EVIL, x_ticks=[(1, EVIL)])
    r.panels(EVIL, [(EVIL, Series(EVIL, [1, 2], [1, 2]))], EVIL, EVIL, EVIL)
    r.leaderboard(EVIL, [Arm(EVIL, "recipe", 0.5, 0.4, 0.6, EVIL), Arm(EVIL, EVIL, 0.4, 0.3, 0.5, EVIL)], EVIL,
                  metric=EVIL)
    r.gallery(EVIL, [[(image, EVIL), (image, EVIL + "x")]], EVIL, labelled=True)
    r.feature_map(EVIL, np.zeros((2, 2)), np.array([0, 1]), [EVIL, EVIL], EVIL)
    r.reconstructions(EVIL, (image[None], image[None], image[None]), EVIL)
    r.config(EVIL, {EVIL: EVIL, "nested": {EVIL: [EVIL, {EVIL: EVIL}]}}, EVIL)
    r.skipped([(EVIL, EVIL)], EVIL)
    r.environment({EVIL: EVIL}, EVIL)
    return r


def test_hostile_strings_are_text_everywhere():
    html = everything().html()
    page = Outline(html)
    assert "<script" not in html and not page.all("script")
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    known = {"html", "head", "meta", "title", "link", "style", "body", "main", "header", "h1", "h2", "h3", "b", "div",
             "p", "span", "svg", "circle", "path", "line", "rect", "polygon", "text", "dl", "dt", "dd", "small",
             "nav", "ul", "li", "a", "section", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "figure",
             "figcaption", "img", "details", "summary", "strong", "footer", "colgroup", "col"}
    assert {t for t, _ in page.tags} <= known
    assert sum(t.count("<script>alert(1)</script>") for t in page.text) > 40


def test_nothing_is_asked_of_the_network_and_no_script_may_run():
    html = everything().html()
    page = Outline(html)
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href", "action") if k in a]
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_what_assistive_technology_needs():
    page = Outline(everything().html())
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert any(m.get("name") == "viewport" and "width=device-width" in m["content"] for m in page.all("meta"))
    assert all(i.get("alt") for i in page.all("img")) and len(page.all("img")) == 5
    assert all(s.get("aria-label") or s.get("aria-hidden") for s in page.all("svg"))
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and all(a["href"][1:] in ids for a in page.all("a"))
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_the_verdict_comes_first_and_its_sign_differs_by_answer():
    pages = {}
    for answer, shown in (("pays", "It pays"), ("does not pay", "It does not pay"), ("cannot tell", "Cannot tell")):
        r = Report("t", Verdict(answer, "A sentence.", {"gain": ("+7.0 points", "[3.0, 11.0]")}))
        r.text("Later", ["words"])
        html = r.html()
        assert shown in html and html.index("A sentence.") < html.index("+7.0 points") < html.index("words")
        pages[answer] = re.search(r'class="answer (\w+)".*?<path d="([^"]+)"', html, re.S).groups()
    assert len({tone for tone, _ in pages.values()}) == len({sign for _, sign in pages.values()}) == 3


def test_a_leaderboard_is_sorted_and_marks_best_ties_and_controls():
    r = Report("t")
    r.leaderboard("b", [Arm("low", "control", 0.5, 0.45, 0.55), Arm("near", "recipe", 0.8, 0.78, 0.85),
                        Arm("top", "recipe", 0.86, 0.84, 0.88), Arm("missing", "recipe", float("nan"))])
    html = r.html()
    rows = re.findall(r'<th scope="row"[^>]*>(\w+)(.*?)</th>.*?<b>(.*?)</b>', html, re.S)
    assert [name for name, _, _ in rows] == ["top", "near", "low", "missing"]
    tags = {name: re.findall(r'class="tag[^"]*">(\w+)', rest) for name, rest, _ in rows}
    assert tags == {"top": ["best"], "near": ["tie"], "low": ["control"], "missing": []}
    assert [value for _, _, value in rows] == ["86.0 %", "80.0 %", "50.0 %", "n/a"]


def test_neighbours_of_another_class_are_marked_in_words_too():
    image = np.zeros((4, 4), np.uint8)
    r = Report("t")
    r.gallery("g", [[(image, "cat"), (image, "cat"), (image, "dog")]], labelled=True)
    html = r.html()
    assert html.count('class="differs"') == 1 and "≠ dog" in html and "(another class)" in html
    r = Report("t")
    r.gallery("g", [[(image, "a"), (image, "b")]])
    assert 'class="differs"' not in r.html()


def test_skipped_samples_are_counted_by_reason_and_listed_up_to_a_limit():
    r = Report("t")
    r.skipped([(f"f{i}.png", "truncated" if i % 3 else "bomb") for i in range(300)], shown=50)
    html = r.html()
    assert re.search(r"truncated</th>\s*<td[^>]*>200<", html) and re.search(r"bomb</th>\s*<td[^>]*>100<", html)
    assert "f49.png" in html and "f50.png" not in html and "Show 50 of 300 skipped samples" in html
    empty = Report("t")
    empty.skipped([])
    assert "Nothing was skipped." in empty.html()


def test_long_tables_are_folded_and_rows_of_the_wrong_length_refused():
    r = Report("t")
    r.table("short", ["a", "b"], [[1, 2]])
    assert "<details" not in r.html()
    r.table("long", ["a", "b"], [[i, i] for i in range(100)])
    assert "<details" in r.html() and "Show 100 rows" in r.html()
    with pytest.raises(UsageError, match="3 cells for 2 columns"):
        r.table("bad", ["a", "b"], [[1, 2, 3]])


def test_columns_of_numbers_are_set_to_the_right_and_words_are_not():
    r = Report("t")
    r.table("t", ["name", "n", "word"], [["x", 1234, "3d"], ["y", "91.2 %", "no"]])
    heads = re.findall(r'<th scope="col"[^>]*>', r.html())
    assert ['class="n"' in h for h in heads] == [False, True, False] and "1,234" in r.html()


def test_equal_titles_get_different_anchors_and_settings_are_flattened():
    r = Report("t")
    for _ in range(3):
        r.text("Émile & co", ["x"])
    r.config("Config", {"train": {"lr": 0.001}, "empty": {}, "flag": True})
    html = r.html()
    assert re.findall(r'<section id="(emile[^"]*)"', html) == ["emile-co", "emile-co-2", "emile-co-3"]
    assert "train.lr" in html and ">0.001<" in html and ">yes<" in html


def test_maps_above_the_limit_say_so():
    r = Report("t")
    n = 4000
    r.feature_map("m", np.random.default_rng(0).random((n, 2)), np.zeros(n, int), ["a"])
    html = r.html()
    assert "3,000 of 4,000 samples are drawn." in html and html.count("h0") - html.count("M5 5h0") == 3000


def test_reconstructions_need_equally_many_images():
    one, two = np.zeros((1, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(UsageError, match="same number"):
        Report("t").reconstructions("r", (one, one, two))


def test_saving_replaces_the_old_page_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    r = Report("broken file name: \udcff")
    assert r.save(path) == path and path.read_text(encoding="utf-8").startswith("<!doctype html>")
    path.write_text("old")
    monkeypatch.setattr("osteon.core.atomic.os.replace", lambda *a: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        r.save(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_data_give_the_same_page():
    assert everything().html() == everything().html()
