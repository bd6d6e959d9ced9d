"""Goal: what comes out of JSON is within its bounds, or it is a ValueError that does not repeat what was sent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.p2p import records


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    size: int = field(metadata=records.number())


@dataclass(frozen=True)
class Whole:
    name: str = field(metadata=records.text(5))
    code: str = field(metadata=records.text(9, re.compile("[a-f]+")))
    colour: Colour = field(metadata=records.choice(Colour))
    part: Part = field(metadata=records.record(Part))
    parts: tuple[Part, ...] = field(metadata=records.records(Part, 2))


GOOD: dict[str, Any] = {"name": "añ😀", "code": "abc", "colour": "red", "part": {"size": 1}, "parts": [{"size": 2}] * 2}


def test_a_record_comes_back_as_it_went_out_and_unknown_keys_are_ignored() -> None:
    whole = records.load(Whole, GOOD | {"later": [1], "part": {"size": 1, "more": None}})
    assert whole == Whole("añ😀", "abc", Colour.RED, Part(1), (Part(2), Part(2)))
    assert records.dump(whole) == GOOD


BAD = [
    ("name", "a" * 6), ("name", 5), ("name", None), ("name", ["a"]), ("name", "a\x1b[m"), ("name", "a\nb"),
    ("name", "\x9b31m"), ("name", "\u202eab"), ("name", "\u200b"), ("name", "\u2028"), ("name", "\ud800"),
    ("code", "xyz"), ("code", "abx"), ("code", "abc\n"), ("code", ""),
    ("colour", "blue"), ("colour", 1), ("colour", []), ("colour", {}),
    ("part", 1), ("part", {}), ("part", [1]), ("part", {"size": -1}), ("part", {"size": True}),
    ("part", {"size": 1.0}), ("part", {"size": 2**53}), ("part", {"size": "1"}), ("part", {"size": float("nan")}),
    ("parts", {"size": 1}), ("parts", [{"size": 1}] * 3), ("parts", "ab"), ("parts", [1]), ("parts", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_bounds_is_a_value_error_that_names_the_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        records.load(Whole, GOOD | {name: value})


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is missing"):
        records.load(Whole, {key: value for key, value in GOOD.items() if key != name})


def test_what_is_out_of_bounds_does_not_go_out_either() -> None:
    good = records.load(Whole, GOOD)
    for bad in (
        Whole("a" * 6, good.code, good.colour, good.part, good.parts),
        Whole(good.name, good.code, good.colour, Part(-1), good.parts),
        Whole(good.name, good.code, good.colour, good.part, (Part(1),) * 3),
        Whole(good.name, good.code, "blue", good.part, good.parts),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="not a"):
            records.dump(bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, "size"]), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(JSON, st.sampled_from([*GOOD]))
def test_any_json_is_a_record_or_a_value_error(value: Any, name: str) -> None:
    for tried in (value, GOOD | {name: value}):
        try:
            whole = records.load(Whole, tried)
        except ValueError as error:
            assert len(str(error)) < 100
        else:
            assert records.load(Whole, records.dump(whole)) == whole


@given(st.text(max_size=50), st.integers(0, 20))
def test_a_cleaned_text_is_always_accepted(value: str, limit: int) -> None:
    @dataclass(frozen=True)
    class Named:
        name: str = field(metadata=records.text(limit))

    cleaned = records.clean(value, limit)
    assert records.dump(Named(cleaned)) == {"name": cleaned}
    if value.isascii() and value.isprintable():
        assert cleaned == value[:limit]
