"""Fields of option dataclasses: a flag, the environment variables that stand in for it, a default, a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, TypeVar

from app.errors import usage_error

_MAX_SECONDS = 86_400.0
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

OptionsT = TypeVar("OptionsT")


def option(
    *flags: str,
    help: str,
    env: Sequence[str] = (),
    fallback: Any = None,
    fallback_text: str = "",
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    convert: Any = None,
    secret: bool = False,
) -> Any:
    """A field whose flag may be left open: then the environment decides, then `fallback`.

    The help shows `fallback_text` in its place.
    """
    notes = [f"default: {fallback_text or fallback}"] if fallback not in (None, "", ()) else []
    if env:
        notes.append("environment: " + ", ".join(env))
    metadata = {
        "args": list(flags),
        "help": (help + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%"),
        "metavar": metavar,
        "choices": choices,
        "env": tuple(env),
        "fallback": fallback,
    }
    if convert is not None:
        metadata["type"] = convert
    return field(default=None, metadata=metadata, repr=not secret)


def switch(*flags: str, help: str, env: Sequence[str] = ()) -> Any:
    """A flag without a value, off unless it is given or the environment says so."""
    notes = f" (environment: {', '.join(env)})" if env else ""
    return field(default=False, metadata={"args": list(flags), "help": help + notes, "env": tuple(env)})


def port(text: str) -> int:
    """A TCP port; raises `ValueError`, like the next three."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def seconds(text: str) -> float:
    """More than none, at most a day."""
    number = float(text)
    if not 0 < number <= _MAX_SECONDS:  # neither infinite nor "nan"
        raise ValueError
    return number


def count(text: str) -> int:
    """One or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def size(text: str) -> int:
    """Bytes: `500M`, `20G`, `1T`, as `du -h` has them, or a plain number."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    unit = text[-1:].upper()
    number = float(text[:-1] if unit in units else text)
    if not 0 <= number <= 1 << 60:
        raise ValueError
    return int(number * (1 << units.get(unit, 0)))


# What argparse calls them in its complaint.
port.__name__, seconds.__name__, count.__name__, size.__name__ = "port", "number of seconds", "number", "size"


def split_list(text: str) -> tuple[str, ...]:
    """`a,b` -> ("a", "b"); a repeated flag arrives here joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fill(options: OptionsT, environ: Mapping[str, str]) -> OptionsT:
    """`options` with what flags left open taken from `environ`, then from the defaults.

    Of several variables the first that is not empty wins. Raises a usage error
    that names the variable whose value cannot be used.
    """
    filled: dict[str, Any] = {}
    for spec in fields(options):  # type: ignore[arg-type]
        if getattr(options, spec.name) is not (False if spec.type is bool else None):
            continue
        names = spec.metadata.get("env", ())
        name = next((name for name in names if environ.get(name)), None)
        if name is not None:
            filled[spec.name] = _from_environment(name, environ[name], spec)
        elif spec.metadata.get("fallback") is not None:
            filled[spec.name] = spec.metadata["fallback"]
    return replace(options, **filled)  # type: ignore[type-var]


def _from_environment(name: str, text: str, spec: Any) -> Any:
    if spec.type is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise usage_error(f"{name} is neither true nor false", f"set {name} to true or false, or unset it")
        return text.lower() in _TRUE
    choices = spec.metadata.get("choices")
    if choices and text not in choices:
        raise usage_error(f"{name} must be one of {', '.join(choices)}", f"correct or unset {name}")
    try:
        return spec.metadata.get("type", str)(text)
    except ValueError:
        raise usage_error(f"{name} has a value that cannot be used", f"correct or unset {name}") from None
