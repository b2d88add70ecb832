"""Laws over arbitrary input: settings are valid or refused, a manifest gives a listing or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osteon.core.errors import OsteonError, UsageError
from osteon.core.options import Option, parse_settings, settle
from osteon.data.codec import check_options
from osteon.data.ids import read_ids
from osteon.data.listing import Listing
from osteon.data.source import list_source
from osteon.modalities import NAMES
from osteon.recipes import Recipe, read_recipes
from osteon.train.settings import resolve_settings
from osteon.verbs._pretrain_settings import GIVEN, merge_config

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "objective",
        "backbone",
        "init",
        "source",
        "steps",
        "epochs",
        "train",
        "data",
        "backbone_options",
        "objective_options",
        "seed",
        "batch_size",
        "fingerprint",
        "continue",
        "guard",
    ]
)
CONFIGS = PLAIN | st.dictionaries(KEYS, PLAIN, max_size=6)
def written(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return path


@QUICK
@given(value=CONFIGS)
def test_a_config_gives_settings_or_a_usage_error(value: Any, tmp_path: Path) -> None:
    try:
        merged = merge_config(written(tmp_path, "c.yaml", value), **dict.fromkeys(GIVEN), settings={})
    except UsageError as error:
        assert error.what and error.where and error.fix
        return
    assert isinstance(value, dict) and isinstance(merged["settings"], dict) and set(GIVEN) <= set(merged)


@QUICK
@given(value=PLAIN)
def test_recipes_are_read_or_refused(value: Any, tmp_path: Path) -> None:
    try:
        found = read_recipes(written(tmp_path, "r.yaml", value))
    except UsageError as error:
        assert error.what and error.where and error.fix
        return
    assert found and all(isinstance(recipe, Recipe) for recipe in found)


@QUICK
@given(
    value=PLAIN,
    annotation=st.sampled_from(
        [
            "int",
            "float",
            "bool",
            "str",
            "int | None",
            "tuple[float, float]",
            "Literal['a', 'b']",
            "list[int]",
            "float | Literal['auto']",
        ]
    ),
)
def test_a_value_fits_its_option_or_is_refused(value: Any, annotation: str) -> None:
    try:
        made = settle([Option("x", annotation, None)], {"x": value}, where="--set")["x"]
    except UsageError as error:
        assert error.what and error.where and error.fix
        return
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str}
    assert annotation not in kinds or isinstance(made, kinds[annotation])


@QUICK
@given(text=st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(["lr", "a.b"]), st.text(max_size=40)))
def test_what_set_is_given_is_parsed_or_refused(text: str) -> None:
    try:
        assert len(parse_settings([text])) == 1
    except UsageError as error:
        assert error.what and error.where and error.fix


@pytest.mark.parametrize("modality", NAMES)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), value=PLAIN)
def test_an_option_of_reading_is_taken_or_refused(modality: str, data: st.DataObject, value: Any) -> None:
    known = check_options(modality, {})
    key = data.draw(st.sampled_from(sorted(known)) if known else st.text(max_size=5))
    try:
        made = check_options(modality, {key: value})
    except UsageError as error:
        assert error.what and error.where and error.fix
        return
    assert set(made) == set(known)
    usual = known[key]
    assert value is None or not isinstance(usual, (bool, int, float)) or isinstance(made[key], type(usual))


@QUICK
@given(
    value=st.dictionaries(
        st.sampled_from(["lr", "warmup", "weight_decay", "steps", "seed", "optimizer", "precision", "batch_size"]),
        PLAIN,
        max_size=3,
    )
)
def test_settings_of_training_are_settled_or_refused(value: Any) -> None:
    try:
        made, notes = resolve_settings(value, {}, 100, kind="tokens")
    except UsageError as error:
        assert error.what and error.where
        return
    assert made.steps >= 1 and notes is not None


@QUICK
@given(
    text=st.text(max_size=120)
    | st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4), max_size=6).map(
        lambda rows: "path,label\n" + "\n".join(map(",".join, rows))
    )
)
def test_any_manifest_gives_a_listing_or_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        made = list_source(str(path))
    except OsteonError as error:
        assert error.what and error.where and error.fix
        return
    assert isinstance(made, Listing) and len(set(made.ids)) == len(made.ids) > 0


@QUICK
@given(
    text=st.text(max_size=80) | st.text(max_size=40).map("id,score\n{}".format),
    name=st.sampled_from(["i.csv", "i.txt"]),
)
def test_any_list_of_ids_is_read_or_refused(text: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_ids(path)
    except OsteonError as error:
        assert error.what and error.where and error.fix
        return
    assert found and len(set(found)) == len(found) and all(isinstance(one, str) for one in found)
