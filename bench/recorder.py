"""A proxy between a llama.cpp client and rpc-server that writes down every message's size and whose turn it was."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Lock, Thread

from bench.shapes import Exchange, Request

# `enum rpc_cmd` of ggml-rpc.cpp, protocol 7.
COMMANDS = (
    "ALLOC_BUFFER", "GET_ALIGNMENT", "GET_MAX_SIZE", "BUFFER_GET_BASE", "FREE_BUFFER", "BUFFER_CLEAR", "SET_TENSOR",
    "SET_TENSOR_HASH", "GET_TENSOR", "COPY_TENSOR", "GRAPH_COMPUTE", "GET_DEVICE_MEMORY", "INIT_TENSOR",
    "GET_ALLOC_SIZE", "HELLO", "DEVICE_COUNT", "GRAPH_RECOMPUTE", "MEMSET_TENSOR",
)  # fmt: skip
_REQUEST = struct.Struct("<BQ")
_ANSWER = struct.Struct("<Q")
_BLOCK = 1 << 20


class Messages:
    """Cuts a stream into messages: a header of fixed form whose last number is the size of what follows."""

    def __init__(self, header: struct.Struct) -> None:
        self._header = header
        self._begun = b""
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, ...]]:
        """The header of each message that begins in `data` and whose header is whole."""
        while data:
            skipped = min(self._left, len(data))
            self._left -= skipped
            data = data[skipped:]
            missing = self._header.size - len(self._begun)
            self._begun += data[:missing]
            data = data[missing:]
            if len(self._begun) == self._header.size:
                fields: tuple[int, ...] = self._header.unpack(self._begun)
                self._begun, self._left = b"", fields[-1]
                yield fields


class Record:
    """What was seen, in order; over all connections, of which a client uses one at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked: list[Request] = []
        self.exchanges: list[Exchange] = []

    def request(self, command: int, size: int) -> None:
        """The client has begun to send a message."""
        with self._lock:
            self._asked.append(Request(COMMANDS[command] if command < len(COMMANDS) else str(command), size))

    def answer(self, size: int) -> None:
        """The server has begun to answer what was asked since its last answer."""
        with self._lock:
            self.exchanges.append(Exchange(tuple(self._asked), size))
            self._asked = []


@contextmanager
def recording(server: int) -> Iterator[tuple[int, Record]]:
    """The port of a proxy to the port `server`, and what it sees."""
    record = Record()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        Thread(target=_accept, args=(listener, server, record), daemon=True).start()
        yield listener.getsockname()[1], record


def _accept(listener: socket.socket, server: int, record: Record) -> None:
    with suppress(OSError):  # it is closed at the end
        while True:
            client, _ = listener.accept()
            onward = socket.create_connection(("127.0.0.1", server))
            for sock in (client, onward):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, messages, note in (
                (client, onward, Messages(_REQUEST), record.request),
                (onward, client, Messages(_ANSWER), record.answer),
            ):
                Thread(target=_copy, args=(source, sink, messages, note), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket, messages: Messages, note: Callable[..., None]) -> None:
    with suppress(OSError):
        while data := source.recv(_BLOCK):
            for fields in messages.feed(data):  # noted before it is passed on: else its answer may be noted first
                note(*fields)
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
