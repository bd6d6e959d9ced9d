"""Our own messages after the TLS handshake: bytes to typed messages and back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from app.p2p import records
from app.p2p.records import choice, number, text

PROTOCOL = 1
"""The version of docs/PROTOCOL.md that this module speaks."""
MAX_FRAME = 64 * 1024
"""Bytes of JSON in a frame. The largest legal hello has about 56,000."""
MAX_NAME = 64
MAX_TEXT = 128
"""Characters of a device's description, a version, a reason."""
MAX_DEVICES = 64
PING_INTERVAL = 5.0
"""Seconds between pings on a control connection, from both sides."""
SILENCE_LIMIT = 20.0
"""Seconds without any frame after which a control connection is lost: four pings, well within 30 s."""

_HEADER = 4
_SESSION = re.compile("[0-9a-f]{32}")


class OurError(Exception):
    """This side made a message that the protocol does not allow: a bug of ours."""


class PeerError(Exception):
    """What the peer sent is not a frame of this protocol, or not one that may come now."""


class Purpose(Enum):
    """Why a head opens a control connection."""

    LIST = "list"
    """To look. Its session never gets the server."""
    CONNECT = "connect"
    """To use the server: its session may open data connections."""


class State(Enum):
    """What a worker can do for a head."""

    STARTING = "starting"
    READY = "ready"
    """The server is free: the next session to ask gets it."""
    BUSY = "busy"
    """A session holds the lease."""
    CHECKING = "checking"
    """A connection has ended and the server has not yet shown that it is well."""
    STOPPING = "stopping"


class Message:
    """What one frame carries; its `type` on the wire is the class name in lower case."""


@dataclass(frozen=True)
class Welcome(Message):
    """Worker, first on every connection: the head's certificate is accepted."""

    protocol: int = field(metadata=number())
    """The highest version that the worker speaks."""


@dataclass(frozen=True)
class Control(Message):
    """Head, after the welcome: this is the control connection of a session."""

    protocol: int = field(metadata=number())
    """The version to speak, not above the worker's."""
    session: str = field(metadata=text(32, _SESSION))
    """128 random bits, hexadecimal."""
    name: str = field(metadata=text(MAX_NAME))
    """What other heads are told when this one is why they wait."""
    version: str = field(metadata=text(MAX_TEXT))
    purpose: Purpose = field(metadata=choice(Purpose))


@dataclass(frozen=True)
class Data(Message):
    """Head, after the welcome: this connection is for the server, in the name of a session."""

    protocol: int = field(metadata=number())
    session: str = field(metadata=text(32, _SESSION))


@dataclass(frozen=True)
class Device:
    """What rpc-server computes on; memory in bytes as of when the server was last idle."""

    name: str = field(metadata=text(MAX_NAME))
    description: str = field(metadata=text(MAX_TEXT))
    total: int = field(metadata=number())
    free: int = field(metadata=number())


@dataclass(frozen=True)
class Status(Message):
    """Worker, on a control connection: what has changed. The hello carries the first one."""

    state: State = field(metadata=choice(State))
    holder: str = field(metadata=text(MAX_NAME))
    """The name of the head that holds the lease; empty without one."""
    since: int = field(metadata=number())
    """Seconds that it has held it."""
    rpc: str = field(metadata=text(MAX_TEXT))
    """The server's RPC version, such as `7.0.0`; empty until it has answered once."""
    devices: tuple[Device, ...] = field(metadata=records.records(Device, MAX_DEVICES))


@dataclass(frozen=True)
class Hello(Message):
    """Worker, answer to `control`: who it is."""

    protocol: int = field(metadata=number())
    """The version spoken: the one that the head named."""
    id: str = field(metadata=text(MAX_NAME))
    """The id in its certificate."""
    name: str = field(metadata=text(MAX_NAME))
    version: str = field(metadata=text(MAX_TEXT))
    llama_cpp: str = field(metadata=text(MAX_TEXT))
    """The release of llama.cpp; empty when unknown."""
    llama_cpp_commit: str = field(metadata=text(MAX_TEXT))
    sandbox: str = field(metadata=text(MAX_TEXT))
    """What keeps the server from the network: `on`, `off`, or empty where the worker did not start it."""
    status: Status = field(metadata=records.record(Status))


@dataclass(frozen=True)
class Ok(Message):
    """Worker, answer to `data`: connected to the server; from here on the connection is its bytes."""


@dataclass(frozen=True)
class Busy(Message):
    """Worker, answer to `data`: another session holds the lease. The connection ends."""

    holder: str = field(metadata=text(MAX_NAME))
    since: int = field(metadata=number())


@dataclass(frozen=True)
class Refused(Message):
    """Worker, answer to `control` or `data`: not possible, for this reason. The connection ends."""

    reason: str = field(metadata=text(MAX_TEXT))


@dataclass(frozen=True)
class Ping(Message):
    """Either side, on a control connection; to be answered at once."""


@dataclass(frozen=True)
class Pong(Message):
    """The answer to a ping."""


@dataclass(frozen=True)
class Bye(Message):
    """Either side, on a control connection: it ends on purpose."""

    reason: str = field(metadata=text(MAX_TEXT))


_KINDS = (Welcome, Control, Data, Hello, Status, Ok, Busy, Refused, Ping, Pong, Bye)
_TYPES: dict[object, type[Message]] = {kind.__name__.lower(): kind for kind in _KINDS}

MessageT = TypeVar("MessageT", bound=Message)


def encode(message: Message) -> bytes:
    """The frame of `message`. Raises OurError for one that the peer would refuse."""
    name = type(message).__name__.lower()
    try:
        values = records.dump(message)
    except ValueError as error:
        raise OurError(f"{name}: {error}") from error
    body = json.dumps({"type": name, **values}, ensure_ascii=False, separators=(",", ":")).encode()
    return len(body).to_bytes(_HEADER, "big") + body


class Decoder:
    """Bytes in, messages out: feed what arrives, take the messages, and behind the last one the rest.

    It holds what was fed and not yet taken. Where every message is taken before
    more is fed, that is less than one frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self, *expected: type[MessageT]) -> MessageT | None:
        """The next message, or None until more has come.

        Raises PeerError for what is no frame and for a message that is none of
        `expected` (one kind at least); the connection is of no more use then.
        """
        size = int.from_bytes(self._buffer[:_HEADER], "big")
        if len(self._buffer) < _HEADER:
            return None
        if size > MAX_FRAME:
            raise PeerError(f"a frame of {size} bytes")
        end = _HEADER + size
        if len(self._buffer) < end:
            return None
        message = _decode(bytes(self._buffer[_HEADER:end]))
        del self._buffer[:end]
        if not isinstance(message, expected):
            raise PeerError(f"unexpected {type(message).__name__.lower()}")
        return message

    def rest(self) -> bytes:
        """What follows the messages taken, handed over: on a data connection, the server's bytes."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


def _decode(body: bytes) -> Message:
    try:
        value = json.loads(body.decode())  # from bytes, json would guess the encoding
    except (ValueError, RecursionError):
        raise PeerError("not JSON") from None
    name = value.get("type") if isinstance(value, dict) else None
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise PeerError("no message of a known type")
    try:
        return records.load(kind, value)
    except ValueError as error:
        raise PeerError(f"{name}: {error}") from error
