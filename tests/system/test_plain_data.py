"""Dataclasses to plain data and back: nothing changes, and nothing that does not fit is read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import DataError, RecipeError
from sottovoce.system.plain_data import from_plain, register_hooks, register_tagged_classes, to_plain


@dataclass(frozen=True, kw_only=True)
class Rule:
    match: str
    bits: int
    group_size: int | None | Literal["same"] = "same"

    def __post_init__(self) -> None:
        if self.bits > 16:
            raise RecipeError(f"bits = {self.bits} is too many")


@dataclass(frozen=True, kw_only=True)
class Settings:
    strength: float | Literal["cross-fit", "diagnostic"]  # in the order of `methods.Strength`: typing keeps one of two equal unions
    ridge: float = 0.01
    symmetric: bool = False
    order: Literal["original", "activation"] = "original"
    rules: tuple[Rule, ...] = ()
    difference: tuple[float, float, float] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    best: Rule | None = None
    names: Sequence[str] = ()
    words: list[str] = field(default_factory=list)


class Format:
    """A class with several implementations."""


@dataclass(frozen=True)
class Affine(Format):
    bits: int
    group_size: int | None = 32


@dataclass(frozen=True)
class Powers(Format):
    bits: int
    inner: Format | None = None


@dataclass(frozen=True)
class Layer:
    name: str
    format: Format
    other: Affine | None = None


FORMATS: dict[str, type] = {"affine": Affine}
register_tagged_classes(Format, FORMATS, tag="name")

FULL = {
    "strength": 0.5,
    "ridge": 1.0,
    "symmetric": True,
    "order": "activation",
    "rules": [{"match": "a", "bits": 4, "group_size": None}, {"match": "b", "bits": 3, "group_size": "same"}],
    "difference": [0.1, 0.0, 0.2],
    "digests": {"a b": "c"},
    "best": {"match": "c", "bits": 16, "group_size": 64},
    "names": ["x"],
    "words": ["y"],
}


def test_a_dataclass_becomes_what_json_holds_and_comes_back() -> None:
    settings = from_plain(Settings, FULL)
    assert settings.rules == (Rule(match="a", bits=4, group_size=None), Rule(match="b", bits=3))
    assert (settings.difference, settings.best) == ((0.1, 0.0, 0.2), Rule(match="c", bits=16, group_size=64))
    assert to_plain(settings) == FULL
    assert json.loads(json.dumps(to_plain(settings))) == FULL
    assert from_plain(Settings, {"strength": "cross-fit"}) == Settings(strength="cross-fit")
    assert from_plain(dict[str, tuple[Rule, ...]], {"a": [{"match": "", "bits": 2}]}) == {"a": (Rule(match="", bits=2),)}


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["same", "diagnostic", "", "x"])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))
rules = st.builds(Rule, match=st.text(max_size=5), bits=st.integers(-5, 16), group_size=st.none() | st.integers(0, 99) | st.just("same"))
numbers = st.floats(allow_nan=False)


@given(
    st.builds(
        Settings,
        strength=numbers | st.sampled_from(["diagnostic", "cross-fit"]),
        ridge=numbers,
        symmetric=st.booleans(),
        rules=st.lists(rules, max_size=3).map(tuple),
        difference=st.none() | st.tuples(numbers, numbers, numbers),
        digests=st.dictionaries(st.text(), st.text(), max_size=3),
        best=st.none() | rules,
        names=st.lists(st.text(), max_size=2).map(tuple),
    )
)
def test_every_value_survives_json(settings: Settings) -> None:
    assert from_plain(Settings, json.loads(json.dumps(to_plain(settings)))) == settings


def as_text(plain: Any) -> str:
    """Tells true from 1, but not 1 from 1.0."""
    return repr(json.loads(json.dumps(plain, sort_keys=True), parse_int=float))


@given(st.sampled_from(sorted(FULL)), anything)
def test_what_is_read_is_what_came_or_is_refused(key: str, value: Any) -> None:
    try:
        settings = from_plain(Settings, {**FULL, key: value})
    except DataError:
        return
    assert as_text(to_plain(settings)) == as_text({**FULL, key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": True}, r"strength: wanted a number or one of 'cross-fit', 'diagnostic', got True"),
        ({"strength": "held-out"}, r"strength: wanted .* got 'held-out'"),
        ({"ridge": "1"}, r"ridge: wanted a number, got '1'"),
        ({"ridge": False}, r"ridge: wanted a number, got False"),
        ({"symmetric": 1}, r"symmetric: wanted true or false, got 1"),
        ({"order": "size"}, r"order: wanted one of 'original', 'activation', got 'size'"),
        ({"rules": "ab"}, r"rules: wanted a list, got 'ab'"),
        ({"rules": [{"match": "a", "bits": 4.0}]}, r"rules\[0\]\.bits: wanted a whole number, got 4.0"),
        ({"rules": [{"match": "a", "bits": True}]}, r"rules\[0\]\.bits: wanted a whole number, got True"),
        ({"rules": [{"match": "a"}]}, r"rules\[0\]\.bits: required key missing"),
        ({"rules": [{"match": "a", "bits": 4, "bitz": 4}]}, r"rules\[0\]: unknown key 'bitz'"),
        ({"rules": [{"match": "a", "bits": 99}]}, r"rules\[0\]: bits = 99 is too many"),
        ({"rules": [{"match": "a", "bits": 4, "group_size": "row"}]}, r"rules\[0\]\.group_size: wanted a whole number or null or 'same'"),
        ({"difference": [1.0, 2.0]}, r"difference: wanted a list of 3, got 2 values"),
        ({"difference": [1.0, "a", 2.0]}, r"difference\[1\]: wanted a number, got 'a'"),
        ({"digests": {"a": 1}}, r"digests\['a'\]: wanted text, got 1"),
        ({"digests": ["a"]}, r"digests: wanted an object, got \['a'\]"),
        ({"best": []}, r"best: wanted an object or null, got \[\]"),
        ({"best": {"match": 1, "bits": 2}}, r"best\.match: wanted text, got 1"),
        ({"surplus": 1}, r"unknown key 'surplus'"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_plain(Settings, {**FULL, **change})


def test_many_errors_are_counted() -> None:
    with pytest.raises(DataError, match=r"\[0\]: wanted .*\[2\]: wanted .*; and 7 more$"):
        from_plain(tuple[int, ...], ["a"] * 10)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"wanted an object \(Settings\), got \[\]"):
        from_plain(Settings, [])


def test_classes_with_a_tag_may_be_added_later() -> None:
    layer = Layer("a", Affine(4), Affine(3, None))
    plain = {
        "name": "a",
        "format": {"name": "affine", "bits": 4, "group_size": 32},
        "other": {"name": "affine", "bits": 3, "group_size": None},
    }
    assert to_plain(layer) == plain
    assert from_plain(Layer, plain) == layer
    with pytest.raises(TypeError, match="Powers has no name among affine"):
        to_plain(Powers(2))
    FORMATS["powers"] = Powers
    try:
        nested = Layer("a", Powers(2, Affine(4)))
        assert to_plain(nested)["format"] == {"name": "powers", "bits": 2, "inner": {"name": "affine", "bits": 4, "group_size": 32}}
        assert from_plain(Layer, json.loads(json.dumps(to_plain(nested)))) == nested
        with pytest.raises(DataError, match=r"other: name 'powers' is not known; wanted one of affine"):
            from_plain(Layer, {**plain, "other": {"name": "powers", "bits": 2}})
    finally:
        del FORMATS["powers"]
    for wrong, message in (
        ({"name": "nf4", "bits": 4}, r"format: name 'nf4' is not known; wanted one of affine"),
        ({"bits": 4}, r"format: wanted an object with the key 'name'"),
        ({"name": "affine", "bits": 4, "zero": 1}, r"format: unknown key 'zero'"),
        ({"name": "affine", "bits": "4"}, r"format\.bits: wanted a whole number, got '4'"),
    ):
        with pytest.raises(DataError, match=message):
            from_plain(Layer, {**plain, "format": wrong})


def test_other_classes_are_converted_by_two_functions_or_refused() -> None:
    class Complex:
        def __init__(self, text: str) -> None:
            self.text = text

    @dataclass(frozen=True)
    class Holder:
        inner: Complex

    with pytest.raises(TypeError, match="no plain data"):
        to_plain({"a": Complex("x")})
    register_hooks(Complex, lambda value: value.text, Complex)
    assert to_plain(Holder(Complex("x"))) == {"inner": "x"}
    assert from_plain(Holder, {"inner": "y"}).inner.text == "y"


def test_values_that_json_would_change_are_refused() -> None:
    for value in ({1: "a"}, {"a": {2: "b"}}, object(), {"a": b"bytes"}):
        with pytest.raises(TypeError, match="plain data"):
            to_plain(value)
