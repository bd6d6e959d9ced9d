"""What llama.cpp was seen to send, as it is kept in shapes.json, and as a script to be played again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from bench.traffic import Script, Turn

FILE = Path(__file__).with_name("shapes.json")


@dataclass(frozen=True)
class Request:
    """One message to the server."""

    command: str
    bytes: int
    """Of its body. In front of it go one byte for the command and eight for this number, each written alone."""


@dataclass(frozen=True)
class Exchange:
    """Requests that were sent without waiting, and the one answer that ended the wait; `times` times over."""

    requests: tuple[Request, ...]
    answer: int
    """Bytes of its body, after eight for this number."""
    times: int = 1


@dataclass(frozen=True)
class Shapes:
    """Of one model, one client."""

    about: str
    load: tuple[Exchange, ...]
    """Until the first graph is computed."""
    token: tuple[Exchange, ...]
    """One token of generation."""


def script(exchanges: Sequence[Exchange], times: int = 1) -> Script:
    """`exchanges` played `times` times, each message in the pieces that llama.cpp writes."""
    turns = tuple(
        Turn(tuple(piece for request in one.requests for piece in (1, 8, request.bytes)), (8, one.answer), one.times)
        for one in exchanges
    )
    if len(turns) == 1:
        return (replace(turns[0], times=turns[0].times * times),)
    return turns * times


def fold(exchanges: Iterable[Exchange]) -> tuple[Exchange, ...]:
    """The same, with neighbours that are equal put together."""
    return tuple(replace(one, times=sum(same.times for same in run)) for one, run in groupby(exchanges))


def write(shapes: Shapes, path: Path = FILE) -> None:
    """To JSON, an exchange a line."""
    lines = {
        name: ",\n  ".join(json.dumps(asdict(exchange)) for exchange in exchanges)
        for name, exchanges in (("load", shapes.load), ("token", shapes.token))
    }
    path.write_text(
        f'{{\n "about": {json.dumps(shapes.about)},\n'
        f' "load": [\n  {lines["load"]}\n ],\n "token": [\n  {lines["token"]}\n ]\n}}\n'
    )


def read(path: Path = FILE) -> Shapes:
    """What `write` wrote."""
    plain = json.loads(path.read_text())
    return Shapes(plain["about"], *(tuple(map(_exchange, plain[name])) for name in ("load", "token")))


def _exchange(plain: dict[str, object]) -> Exchange:
    requests, answer, times = plain["requests"], plain["answer"], plain["times"]
    assert isinstance(requests, list)
    assert isinstance(answer, int)
    assert isinstance(times, int)
    return Exchange(tuple(Request(**request) for request in requests), answer, times)
