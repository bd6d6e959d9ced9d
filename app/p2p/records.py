"""Frozen dataclasses from and to JSON objects, every value within the bounds that its field states."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar

MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON library reads exactly (RFC 8259, section 6): 9 PB."""

# Control and format characters, surrogates, line and paragraph separators: what
# could steer a terminal or turn the text around.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")

RecordT = TypeVar("RecordT")
Metadata = Mapping[str, Callable[[Any], Any]]
"""What a field says of itself, for `field(metadata=...)`: how to read it and how to
write it. Both raise ValueError for a value out of bounds."""


def text(limit: int, pattern: re.Pattern[str] | None = None) -> Metadata:
    """A string of up to `limit` characters that a terminal may show, wholly like `pattern`."""

    def check(value: Any) -> str:
        if type(value) is not str or len(value) > limit or not all(map(_printable, value)):
            raise ValueError(f"not a text of up to {limit} printable characters")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"not a text like {pattern.pattern}")
        return value

    return {"load": check, "dump": check}


def number() -> Metadata:
    """An integer from 0 to `MAX_NUMBER`."""

    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= MAX_NUMBER:  # True is an int too
            raise ValueError(f"not an integer from 0 to {MAX_NUMBER}")
        return value

    return {"load": check, "dump": check}


def choice(kind: type[Enum]) -> Metadata:
    """One of an Enum's values."""

    def read(value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError:  # its text would repeat the value, however long
            raise ValueError(f"not a {kind.__name__.lower()}") from None

    return {"load": read, "dump": lambda value: read(value).value}


def record(kind: type) -> Metadata:
    """An object that is itself a dataclass of such fields."""
    return {"load": lambda value: load(kind, value), "dump": dump}


def records(kind: type, limit: int) -> Metadata:
    """A list of up to `limit` of them: a tuple here."""

    def bounded(value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) > limit:
            raise ValueError(f"not a list of up to {limit}")
        return value

    return {
        "load": lambda value: tuple(load(kind, item) for item in bounded(value)),
        "dump": lambda value: [dump(item) for item in bounded(value)],
    }


def load(kind: type[RecordT], value: Any) -> RecordT:
    """A `kind` from a JSON object, whose unknown keys are ignored. Raises ValueError."""
    if type(value) is not dict:
        raise ValueError("not an object")
    values = {}
    for spec in fields(kind):  # type: ignore[arg-type]
        if spec.name not in value:
            raise ValueError(f"{spec.name} is missing")
        try:
            values[spec.name] = spec.metadata["load"](value[spec.name])
        except ValueError as error:
            raise ValueError(f"{spec.name}: {error}") from None
    return kind(**values)


def dump(value: Any) -> dict[str, Any]:
    """The JSON object of a dataclass. Raises ValueError."""
    return {spec.name: spec.metadata["dump"](getattr(value, spec.name)) for spec in fields(value)}


def clean(value: str, limit: int) -> str:
    """`value` as a `text` field takes it: cut to `limit` characters, `?` for what a terminal must not see."""
    return "".join(character if _printable(character) else "?" for character in value[:limit])


def _printable(character: str) -> bool:
    return unicodedata.category(character) not in _UNPRINTABLE
