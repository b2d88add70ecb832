from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from osteon.core.card import Card
from osteon.verbs import methods as verb

FILE = Path(__file__).resolve().parents[2] / "tools" / "evidence.py"
PAGE = """# Claim 17: {word} at this scale

Regenerate with `python -m benchmarks.claims 17`.

**Paper:** A beats B.

**Protocol:** digits, 3 seeds.

**Threshold:** by 1 point.

```
A 94.3
holds: A - B >= 1: 2.6
{last}
12 seconds
```
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evidence_tool", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(last="holds: B - C >= 0: 0.1", word="holds"):
    return PAGE.format(word=word, last=last)


def card(name, *rows):
    return Card("objective", name, ("P",), ("image",), "nothing known", rows=rows)


def test_the_file_and_the_pages_are_in_step(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_is_read(tool):
    number, entry = tool.read_page(page())
    assert number == 17 and entry == {
        "claim": "A beats B.", "data": "digits, 3 seeds.", "holds": True, "command": "python -m benchmarks.claims 17",
        "measured": [{"what": "A - B >= 1: 2.6", "holds": True}, {"what": "B - C >= 0: 0.1", "holds": True}]}


def test_what_does_not_hold_is_said(tool):
    _, entry = tool.read_page(page("DOES NOT HOLD: B - C >= 0: -0.1", "does not hold"))
    assert not entry["holds"] and [m["holds"] for m in entry["measured"]] == [True, False]


@pytest.mark.parametrize(("text", "words"), [
    (page("DOES NOT HOLD: x", "holds"), "comparisons say otherwise"), (page(word="does not hold"), "otherwise"),
    ("# Something else", "first line"), (page().replace("**Paper:**", "Paper:"), "Paper"),
    (page().replace("holds: ", ""), "otherwise")])
def test_a_page_that_contradicts_itself_or_lacks_something_is_refused(tool, text, words):
    with pytest.raises(SystemExit, match=words):
        tool.read_page(text, "claim_017.md")


def test_evidence_goes_to_every_method_of_the_paper(tool):
    found = tool.collect({"b": page(), "a": page().replace("17", "4")}, [card("x", 17), card("y", 4, 17), card("z")])
    assert {k: [e["command"][-2:].strip() for e in v] for k, v in found.items()} == {"x": ["17"], "y": ["4", "17"]}


def test_methods_show_it(tool, monkeypatch, capsys):
    entry = tool.read_page(page("DOES NOT HOLD: B - C >= 0: -0.1", "does not hold"))[1]
    monkeypatch.setattr(verb, "_evidence", lambda: {"simclr": [entry]})
    (simclr,) = [c for c in verb.methods("simclr") if c.name == "simclr"]
    (mae,) = [c for c in verb.methods("mae") if c.name == "mae"]
    assert [json.loads(json.dumps(verb.as_json([c])))[0]["evidence"] for c in (simclr, mae)] == [[entry], []]
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as drawn:
        console.print(verb.page(simclr), markup=False)
    shown = drawn.get()
    for words in ("does not hold at this scale", "A beats B.", "DOES NOT HOLD: B - C >= 0: -0.1", "claims 17"):
        assert words in shown
    with console.capture() as drawn:
        console.print(verb.table([simclr, mae]))
    assert "0 of 1 hold" in drawn.get()
