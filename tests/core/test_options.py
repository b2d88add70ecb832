"""Values from the shell and from YAML are checked against annotations, and nothing is lost on the way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osteon.core.errors import UsageError
from osteon.core.options import Option, coerce, parse_settings, settle


@pytest.mark.parametrize(("value", "annotation", "expected"), [
    ("3", "int", 3), (3.0, "int", 3), ("1e3", "int", 1000), ("1_000", "int", 1000), ("-4", "int", -4),
    (3, "float", 3.0), ("1e-3", "float", 0.001), ("inf", "float", math.inf),
    ("true", "bool", True), ("off", "bool", False), (1, "bool", True), (0, "bool", False), ("0", "bool", False),
    (7, "str", "7"), (True, "str", "true"), ("x", "str", "x"),
    ("none", "int | None", None), (None, "int | None", None), ("5", "int | None", 5), ("none", "str | None", "none"),
    (None, "Optional[float]", None), ("2", "Union[int, str]", "2"), (2, "str | int", 2), ("2", "int | float", 2),
    (2, "float | int", 2), (2, "int | float", 2), (2.5, "int | float", 2.5),
    ("true", "bool | str", "true"), (True, "str | bool", True), ("yes", "bool | int", True),
    ("batch", "bool | str", "batch"),
    ("mean", 'Literal["mean", "cls"]', "mean"), ("CLS", "typing.Literal['mean', 'cls']", "cls"),
    (None, "Literal['none', 'all']", "none"), ("2", "Literal[1, 2]", 2), (True, "Literal['true', 1]", "true"),
    ("3,4", "tuple[int, ...]", (3, 4)), ([3, "4"], "tuple[int, ...]", (3, 4)), ("(0.9, 0.95)", "tuple[float, float]",
                                                                                (0.9, 0.95)),
    ("[]", "tuple[int, ...]", ()), (5, "tuple[int, ...]", (5,)), ("a, b", "list[str]", ["a", "b"]),
    ((1, 2), "Sequence[float]", (1.0, 2.0)), ("1,2", "tuple", (1, 2)), ("1", "tuple[int]", (1,)),
    ("[3, 4]", "tuple[int, ...] | None", (3, 4)), (None, "tuple[int, ...] | None", None),
    ("x", "", "x"), ("x", "Tensor", "x"), ("x", "dict[str, int]", "x"), ("3", "'int'", 3), ("x", "not an annotation",
                                                                                            "x"),
])
def test_coerce_gives_what_the_annotation_asks_for(value, annotation, expected):
    result = coerce(value, annotation)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(("value", "annotation"), [
    ("1.5", "int"), (1.5, "int"), (True, "int"), ("many", "int"), (None, "int"), ([1], "int"), ("inf", "int"),
    ("fast", "float"), (False, "float"), ("nan", "float"), (None, "float"),
    (2, "bool"), ("maybe", "bool"), (None, "bool"), (0.5, "bool"),
    (None, "str"), ([1], "str"), ("x", "int | None"), ("", "int | None"),
    ("max", "Literal['mean', 'cls']"), (3, "Literal[1, 2]"),
    ("1,x", "tuple[int, ...]"), ("1,2,3", "tuple[float, float]"), ("1,2", "tuple[int]"), ("[1", "tuple[int, ...]"),
])
def test_coerce_refuses_what_does_not_fit(value, annotation):
    with pytest.raises(UsageError) as caught:
        coerce(value, annotation, name="width", where="objective simclr")
    assert caught.value.what.startswith(f"width must be {annotation}, not {value!r}")
    assert caught.value.where == "objective simclr" and caught.value.fix and caught.value.code == 2


def test_a_wrong_choice_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'mean'"):
        coerce("maen", "Literal['mean', 'cls']")


def test_parse_settings_reads_yaml_1_2():
    pairs = ["lr=1e-3", "n=3", "flag=true", "word=no", "off=off", "none=null", "dims=[1, 2]", "text='3'", "eq=a=b",
             "empty=", "learning-rate=.5", "date=2020-01-01", "time=1:30",
             "octal=010", "hex=0x10", "inf=-.inf", "version=1.2.3", "neg=-2.5", "exp=1E+2"]
    assert parse_settings(pairs) == {
        "lr": 0.001, "n": 3, "flag": True, "word": "no", "off": "off", "none": None, "dims": [1, 2], "text": "3",
        "eq": "a=b", "empty": None, "learning_rate": 0.5, "date": "2020-01-01", "time": "1:30",
        "octal": 10.0, "hex": 16, "inf": -math.inf, "version": "1.2.3", "neg": -2.5, "exp": 100.0}


@pytest.mark.parametrize("pairs", [["lr"], ["=3"], ["a=1", "a=2"], ["a=[1"], ["a=!!python/object:os.system x"]])
def test_parse_settings_refuses(pairs):
    with pytest.raises(UsageError) as caught:
        parse_settings(pairs)
    assert caught.value.where == "--set" and caught.value.fix


OPTIONS = [Option("temperature", "float", 0.1), Option("width", "int | None", None), Option("k", "int", None,
                                                                                            required=True)]


def test_settle_coerces_and_leaves_defaults_to_the_method():
    assert settle(OPTIONS, {"k": "3", "temperature": 1}, where="x") == {"k": 3, "temperature": 1.0}


def test_settle_names_the_nearest_known_setting():
    with pytest.raises(UsageError, match="Unknown setting 'temprature'. Did you mean 'temperature'?") as caught:
        settle(OPTIONS, {"temprature": 0.2, "k": 1}, where="objective simclr")
    assert "temperature, width, k" in caught.value.fix
    with pytest.raises(UsageError, match="It has no settings"):
        settle([], {"a": 1}, where="x")


def test_settle_demands_what_is_required():
    with pytest.raises(UsageError, match="'k' is required"):
        settle(OPTIONS, {}, where="x")


@given(st.integers(-10**12, 10**12))
def test_integers_survive_the_shell(value):
    assert parse_settings([f"a={value}"]) == {"a": value}
    assert coerce(str(value), "int") == value


@given(st.floats(allow_nan=False))
def test_floats_survive_the_shell(value):
    assert coerce(repr(value), "float") == value
    assert coerce(parse_settings([f"a={value!r}"])["a"], "float") == value
