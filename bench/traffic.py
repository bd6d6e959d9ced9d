"""What goes over one connection: a script of turns, played by a client and a server, timed at the client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

BLOCK = 1 << 20
"""Bytes moved by one call: large enough that two Python programs are not what limits a relay."""
LIMIT = 120.0
"""Seconds without a byte: a guard against hanging, far longer than any peer needs for a block."""
_READY = b"!"


@dataclass(frozen=True)
class Turn:
    """The client sends, then the server answers; `times` times.

    Each number is the bytes of one write: rpc-server and its clients write a
    message in pieces, and what a relay makes of them is part of its speed.
    """

    up: tuple[int, ...]
    down: tuple[int, ...]
    times: int = 1


Script = tuple[Turn, ...]


def size(script: Script) -> tuple[int, int]:
    """Bytes up and down."""
    return sum(sum(turn.up) * turn.times for turn in script), sum(sum(turn.down) * turn.times for turn in script)


class Client:
    """A connection whose server has the script and waits for its first byte."""

    def __init__(self, port: int, script: Script) -> None:
        """Connect to `port` on loopback; nothing of the script is played yet."""
        self._script = script
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(json.dumps([asdict(turn) for turn in script]).encode() + b"\n")
        _receive(self._sock, len(_READY))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def play(self) -> list[float]:
        """The seconds that each turn took, from its first byte up to its last byte down."""
        took = []
        for turn in self._script:
            pieces, wanted = list(_pieces(turn.up)), sum(turn.down)
            for _ in range(turn.times):
                started = time.perf_counter()
                _send(self._sock, pieces)
                _receive(self._sock, wanted)
                took.append(time.perf_counter() - started)
        return took


def serve(sock: socket.socket, begin: bytes) -> None:
    """Play the server of the script whose text starts with `begin`, which has been read already."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    text = begin
    while not text.endswith(b"\n"):
        if not (more := sock.recv(BLOCK)):  # the client sends no more before it has its READY
            raise EOFError
        text += more
    script = [Turn(tuple(turn["up"]), tuple(turn["down"]), turn["times"]) for turn in json.loads(text)]
    sock.sendall(_READY)
    for turn in script:
        wanted, pieces = sum(turn.up), list(_pieces(turn.down))
        for _ in range(turn.times):
            _receive(sock, wanted)
            _send(sock, pieces)


_ZEROS = memoryview(bytes(BLOCK))


def _pieces(sizes: Sequence[int]) -> Iterator[memoryview]:
    for left in sizes:
        while left > 0:
            yield _ZEROS[: min(left, BLOCK)]
            left -= BLOCK


def _send(sock: socket.socket, pieces: list[memoryview]) -> None:
    for piece in pieces:
        sock.sendall(piece)


def _receive(sock: socket.socket, count: int) -> None:
    """Read `count` bytes and forget them."""
    view = memoryview(bytearray(min(count, BLOCK)))
    while count:
        got = sock.recv_into(view[: min(count, BLOCK)])
        if not got:
            raise EOFError
        count -= got
