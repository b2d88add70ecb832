"""``osteon.methods``: what is asked for comes first, and everything shown comes from the card."""

from __future__ import annotations

import json

import osteon
from osteon.core.card import Card
from osteon.core.options import Option
from osteon.verbs import methods as verb


def test_a_method_of_that_name_comes_before_those_that_mention_it(monkeypatch):
    cards = [Card("objective", name, ("P",), ("image",), "nothing known") for name in ("crop_mae", "mae", "mae_plus")]
    with monkeypatch.context() as patch:
        patch.setattr(verb.registry, "cards", lambda **filters: cards)
        assert [card.name for card in osteon.methods("MAE")] == ["mae", "crop_mae", "mae_plus"]
        assert [card.name for card in osteon.methods("crop-mae")] == ["crop_mae", "mae", "mae_plus"]
        assert [card.name for card in osteon.methods("")] == ["crop_mae", "mae", "mae_plus"]


def test_spellings_of_a_name():
    assert osteon.methods("SimCLR")[0].name == osteon.methods("sim-clr")[0].name == "simclr"
    assert osteon.methods("barlow twins")[0].name == osteon.methods("Barlow-Twins")[0].name == "barlow_twins"


def test_filters_narrow_and_combine():
    everything = osteon.methods()
    assert {card.kind for card in osteon.methods(kind="evaluator")} == {"evaluator"}
    assert 0 < len(osteon.methods("view", kind="objective")) < len(osteon.methods(kind="objective")) < len(everything)
    assert [card.name for card in osteon.methods(paper=411, kind="objective")] == ["simclr"]
    assert osteon.methods("no-such-thing-anywhere") == []


def test_json_holds_the_whole_card_and_its_options():
    (card,) = [c for c in osteon.methods("simclr") if c.name == "simclr"]
    (plain,) = json.loads(json.dumps(verb.as_json([card])))
    assert plain["papers"] == list(card.papers) and plain["differs"] == card.differs and plain["rows"] == [411]
    assert (plain["summary"], plain["cost"], plain["labels"]) == (card.summary, card.cost, False)
    names = [option["name"] for option in plain["options"]]
    assert "temperature" in names and not {"backbone", "data", "self"} & set(names)


def test_the_page_shows_markup_and_required_options_as_they_are(monkeypatch):
    from io import StringIO

    from rich.console import Console

    (card,) = [c for c in osteon.methods("simclr") if c.name == "simclr"]
    monkeypatch.setattr(verb.registry, "options", lambda card: [
        Option("a", "Literal['x', 'y'] | None", None, "with [brackets]."),
        Option("b", "int", None, "b.", required=True)])
    console = Console(file=StringIO(), width=200)
    console.print(verb.page(card), markup=False)
    text = console.file.getvalue()
    assert "Literal['x', 'y'] | None" in text and "[brackets]" in text and "required" in text and "None" in text
    assert card.papers[0] in text and "A Simple Framework" in text
