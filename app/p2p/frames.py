"""Our own messages after the TLS handshake: frames of JSON to typed messages and back."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

PROTOCOL = 1
"""The version of docs/PROTOCOL.md that this module speaks."""
MAX_FRAME = 64 * 1024
"""Bytes of JSON in a frame. The largest legal hello has about 53,000."""
MAX_NAME = 64
MAX_TEXT = 128
"""Characters of a device's description, a version, a reason."""
MAX_DEVICES = 64
MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON library reads exactly (RFC 8259, section 6): 9 PB."""
PING_INTERVAL = 5.0
"""Seconds between pings on a control connection, from both sides."""
SILENCE_LIMIT = 20.0
"""Seconds without any frame after which a control connection is lost: four pings, below the lease's 30 s."""

_HEADER = 4
_SESSION = re.compile("[0-9a-f]{32}")
# Control and format characters, surrogates, line and paragraph separators: what
# could steer a terminal or turn the text around.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class OurError(Exception):
    """This side made a message that the protocol does not allow: a bug of ours."""


class PeerError(Exception):
    """What the peer sent is not a frame of this protocol, or not one that may come now."""


class Purpose(Enum):
    """Why a head opens a control connection."""

    LIST = "list"
    """To look. Never gets the server."""
    CONNECT = "connect"
    """To use the server: its session may open data connections."""


class State(Enum):
    """What a worker's server is doing."""

    STARTING = "starting"
    READY = "ready"
    """Free: the next session to ask gets it."""
    BUSY = "busy"
    """A session holds the lease."""
    CHECKING = "checking"
    """A connection has ended and the server has not yet shown that it is well."""
    STOPPING = "stopping"


@dataclass(frozen=True)
class _Codec:
    """How a field is checked and read (`load`) and written (`dump`); both raise ValueError."""

    load: Callable[[Any], Any]
    dump: Callable[[Any], Any]


def _field(load: Callable[[Any], Any], dump: Callable[[Any], Any] | None = None) -> Any:
    return field(metadata={"codec": _Codec(load, dump or load)})


def _text(limit: int, pattern: re.Pattern[str] | None = None) -> Any:
    def check(value: Any) -> str:
        if type(value) is not str or len(value) > limit or not all(map(_printable, value)):
            raise ValueError(f"text of up to {limit} printable characters expected")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"text like {pattern.pattern} expected")
        return value

    return _field(check)


def _number(limit: int = MAX_NUMBER) -> Any:
    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= limit:  # True is an int too
            raise ValueError(f"integer from 0 to {limit} expected")
        return value

    return _field(check)


def _choice(kind: type[Enum]) -> Any:
    return _field(kind, lambda value: kind(value).value)


def _record(kind: type) -> Any:
    return _field(lambda value: _load(kind, value), _dump)


def _records(kind: type, limit: int) -> Any:
    def bounded(value: Any, sort: type) -> Any:
        if not isinstance(value, sort) or len(value) > limit:  # type: ignore[arg-type]
            raise ValueError(f"list of up to {limit} expected")
        return value

    return _field(
        lambda value: tuple(_load(kind, item) for item in bounded(value, list)),
        lambda value: [_dump(item) for item in bounded(value, tuple)],
    )


@dataclass(frozen=True)
class Device:
    """What rpc-server computes on; memory in bytes as of when the server was last idle."""

    name: str = _text(MAX_NAME)
    description: str = _text(MAX_TEXT)
    total: int = _number()
    free: int = _number()


class Message:
    """What one frame carries."""


@dataclass(frozen=True)
class Welcome(Message):
    """Worker, first on every connection: the head's certificate is accepted."""

    protocol: int = _number()
    """The highest version that the worker speaks."""


@dataclass(frozen=True)
class Control(Message):
    """Head, after the welcome: this is the control connection of a session."""

    protocol: int = _number()
    """The version to speak, not above the worker's."""
    session: str = _text(32, _SESSION)
    """128 random bits, hexadecimal."""
    name: str = _text(MAX_NAME)
    """What others are told when this head is why they wait."""
    version: str = _text(MAX_TEXT)
    purpose: Purpose = _choice(Purpose)


@dataclass(frozen=True)
class Data(Message):
    """Head, after the welcome: this connection is for the server, in the name of a session."""

    protocol: int = _number()
    session: str = _text(32, _SESSION)


@dataclass(frozen=True)
class Status(Message):
    """Worker, on a control connection: what has changed. The hello carries the first one."""

    state: State = _choice(State)
    holder: str = _text(MAX_NAME)
    """The name of the head that holds the lease; empty without one."""
    since: int = _number()
    """Seconds that it has held it."""
    rpc: str = _text(MAX_TEXT)
    """The server's RPC version, such as `7.0.0`; empty until it has answered once."""
    devices: tuple[Device, ...] = _records(Device, MAX_DEVICES)


@dataclass(frozen=True)
class Hello(Message):
    """Worker, answer to `control`: who it is."""

    protocol: int = _number()
    id: str = _text(MAX_NAME)
    """Must be the id of its certificate."""
    name: str = _text(MAX_NAME)
    version: str = _text(MAX_TEXT)
    llama_cpp: str = _text(MAX_TEXT)
    """Release of llama.cpp, empty when unknown."""
    llama_cpp_commit: str = _text(MAX_TEXT)
    sandbox: str = _text(MAX_TEXT)
    """How the server is kept from the network: `on`, `off`, or `none` where the worker did not start it."""
    status: Status = _record(Status)


@dataclass(frozen=True)
class Ok(Message):
    """Worker, answer to `data`: connected to the server; from here on the connection is its bytes."""


@dataclass(frozen=True)
class Busy(Message):
    """Worker, answer to `data`: another session holds the lease. The connection ends."""

    holder: str = _text(MAX_NAME)
    since: int = _number()


@dataclass(frozen=True)
class Refused(Message):
    """Worker, answer to `control` or `data`: not possible, for this reason. The connection ends."""

    reason: str = _text(MAX_TEXT)


@dataclass(frozen=True)
class Ping(Message):
    """Either side, on a control connection; to be answered at once."""


@dataclass(frozen=True)
class Pong(Message):
    """The answer to a ping."""


@dataclass(frozen=True)
class Bye(Message):
    """Either side, on a control connection: it ends on purpose."""

    reason: str = _text(MAX_TEXT)


_KINDS = (Welcome, Control, Data, Hello, Status, Ok, Busy, Refused, Ping, Pong, Bye)
_TYPES: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in _KINDS}

MessageT = TypeVar("MessageT", bound=Message)


def clean(text: str, limit: int = MAX_NAME) -> str:
    """`text` cut to `limit` characters, `?` in place of each that a message may not hold: for names of the outside."""
    return "".join(character if _printable(character) else "?" for character in text[:limit])


def encode(message: Message) -> bytes:
    """The frame of `message`. Raises OurError for one that the peer would refuse."""
    try:
        record = {"type": type(message).__name__.lower(), **_dump(message)}
    except ValueError as error:
        raise OurError(f"{type(message).__name__}: {error}") from error
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise OurError(f"{type(message).__name__}: {len(body)} bytes")
    return len(body).to_bytes(_HEADER, "big") + body


class Decoder:
    """Bytes in, messages out: feed what arrives, take the messages, and behind the last one the rest.

    Holds what was fed and not taken. With every message taken before the next
    feed, that is less than one frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self, *expected: type[MessageT]) -> MessageT | None:
        """The next message, or None until more has come.

        Raises PeerError for what is no frame, and for a message that is none
        of `expected`. The connection is then of no more use.
        """
        if len(self._buffer) < _HEADER:
            return None
        size = int.from_bytes(self._buffer[:_HEADER], "big")
        if size > MAX_FRAME:
            raise PeerError(f"frame of {size} bytes")
        end = _HEADER + size
        if len(self._buffer) < end:
            return None
        message = _decode(bytes(self._buffer[_HEADER:end]))
        del self._buffer[:end]
        if not isinstance(message, expected):
            raise PeerError(f"unexpected {type(message).__name__.lower()}")
        return message

    def rest(self) -> bytes:
        """What follows the messages taken so far, handed over: on a data connection, the server's bytes."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


def _printable(character: str) -> bool:
    return unicodedata.category(character) not in _UNPRINTABLE


def _decode(body: bytes) -> Message:
    try:
        record = json.loads(body.decode("utf-8"))  # of bytes, json would guess the encoding
        kind = _TYPES.get(record["type"]) if isinstance(record, dict) and type(record.get("type")) is str else None
        if kind is None:
            raise ValueError("no known type")
        return _load(kind, record)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"not a message: {error}") from error


RecordT = TypeVar("RecordT")


def _load(kind: type[RecordT], record: Any) -> RecordT:
    """A `kind` from a JSON object; keys that it does not know are ignored."""
    if not isinstance(record, dict):
        raise ValueError("object expected")  # noqa: TRY004 - what a codec raises
    try:
        return kind(**{spec.name: spec.metadata["codec"].load(record[spec.name]) for spec in fields(kind)})  # type: ignore[arg-type]
    except KeyError as error:
        raise ValueError(f"{error} missing") from error


def _dump(record: Any) -> dict[str, Any]:
    return {spec.name: spec.metadata["codec"].dump(getattr(record, spec.name)) for spec in fields(record)}
