"""Recipes: from names, from functions, from YAML; what is wrong is named."""

from __future__ import annotations

import pytest

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.recipes import DEFAULT_SEARCH, Recipe, default, fitting, read_recipes


def mine() -> Recipe:
    return Recipe("mine", "mae", settings={"norm_pix": False})


def not_mine() -> str:
    return "mae"


def test_trials_begin_with_every_default_and_depart_one_option_at_a_time():
    recipe = Recipe("r", "simclr", search={"temperature": [0.1, 0.5], "lr_scale": [1.0, 0.3, 3.0]})
    assert recipe.trials(4) == [{"temperature": 0.1, "lr_scale": 1.0}, {"temperature": 0.1, "lr_scale": 0.3},
                                {"temperature": 0.5, "lr_scale": 1.0}, {"temperature": 0.1, "lr_scale": 3.0}]
    assert len(recipe.trials(100)) == 6
    assert Recipe("r", "simclr").trials(5) == [{}]


def test_names_functions_and_recipes_mix():
    got = read_recipes(["simclr", f"{__name__}:mine", Recipe("x", "byol")])
    assert [r.name for r in got] == ["simclr", "mine", "x"] and got[0].search == DEFAULT_SEARCH
    assert read_recipes("simclr, mae") == [default("simclr"), default("mae")]


def test_the_procedures_of_resnet_strikes_back_are_those_of_the_papers_table():
    a1, a2, a3 = read_recipes("rsb_a1,rsb_a2,rsb_a3", labelled=True)
    assert [r.objective for r in (a1, a2, a3)] == ["supervised"] * 3
    table = {"lr": (5e-3, 5e-3, 8e-3), "weight_decay": (0.01, 0.02, 0.02), "smoothing": (0.1, 0.0, 0.0),
             "backbone.drop_path": (0.05, 0.05, 0.0), "repeats": (3, 3, 1), "magnitude": (7.0, 7.0, 6.0),
             "mixup": (0.2, 0.1, 0.1), "cutmix": (1.0, 1.0, 1.0)}
    for key, values in table.items():
        assert tuple(r.settings[key] for r in (a1, a2, a3)) == values, key
    assert all(r.settings["optimizer"] == "lamb" and r.settings["loss"] == "bce" and r.settings["lr_per"] == 2048
               for r in (a1, a2, a3))
    assert [round(1 / r.settings["warmup"]) for r in (a1, a2, a3)] == [120, 60, 20]


def test_all_is_every_objective_that_fits_and_needs_no_labels():
    names = {r.name for r in read_recipes("all")}
    cards = registry.cards(kind="objective")
    assert names == {c.name for c in cards if "image" in c.modalities and not c.labels}
    assert "unitabe" not in {c.name for c in fitting("table", labelled=True)}  # it needs tables read by units
    assert {c.name for c in fitting("image", labelled=True)} == {c.name for c in cards if "image" in c.modalities}


def test_yaml_as_a_list_or_a_mapping(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("- simclr\n- {name: small, objective: mae, settings: {norm_pix: false}, search: {}}\n")
    got = read_recipes(file)
    assert got == [default("simclr"), Recipe("small", "mae", settings={"norm_pix": False})]
    file.write_text("recipes:\n  hot: {objective: simclr, settings: {temperature: 1.0}}\n  mae:\n")
    got = read_recipes(str(file))
    assert got == [Recipe("hot", "simclr", settings={"temperature": 1.0}, search=DEFAULT_SEARCH), default("mae")]
    assert Recipe(**got[0].as_dict()).as_dict() == got[0].as_dict()


@pytest.mark.parametrize(("text", "words"), [
    ("- {objectiv: mae}", "Did you mean 'objective'"), ("- {objective: maee}", "Did you mean 'mae'"), ("17", "no list"),
    ("- 3", "no recipe"), ("- {objective: mae, settings: 3}", "no mapping"), ("[", "cannot be read"),
    ("[]", "no recipe"),
    ("- {objective: mae, search: {lr_scale: 3}}", "no list of values"),
    ("- {objective: mae, search: {lr_scale: [0]}}", "positive"),
    ("- {objective: mae, settings: {norm_pix: true}, search: {norm_pix: [true]}}", "both kept and searched"),
    ("- {name: ../up, objective: mae}", "cannot name a recipe"), ("- mae\n- mae", "Two recipes"),
])
def test_a_malformed_file_says_what_is_wrong(tmp_path, text, words):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipes(file)


@pytest.mark.parametrize(("wish", "words"), [
    ("simlcr", "Did you mean 'simclr'"), ("nowhere:f", "no function"), (f"{__name__}:nothing", "no function"),
    (f"{__name__}:not_mine", "not a Recipe"), ("", "no recipe"), ("missing.yaml", "cannot be read"),
])
def test_an_unknown_name_suggests_the_nearest(wish, words):
    with pytest.raises(UsageError, match=words):
        read_recipes(wish)
