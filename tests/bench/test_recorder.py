"""Goal: the recorder passes everything on unchanged, and its record is what went through."""

from __future__ import annotations

import socket
import struct
from threading import Thread

import pytest

from bench.recorder import Messages, recording
from bench.shapes import Exchange, Request

REQUEST = struct.Struct("<BQ")
STREAM = REQUEST.pack(6, 3) + b"abc" + REQUEST.pack(16, 0) + REQUEST.pack(8, 1) + b"x"


@pytest.mark.parametrize("step", [1, 2, 9, 10, len(STREAM)])
def test_messages_are_found_however_the_stream_is_cut(step: int) -> None:
    messages = Messages(REQUEST)
    pieces = [STREAM[start : start + step] for start in range(0, len(STREAM), step)]
    assert [found for piece in pieces for found in messages.feed(piece)] == [(6, 3), (16, 0), (8, 1)]


def test_requests_and_the_answer_that_ends_the_wait_are_one_exchange() -> None:
    answer = struct.pack("<Q", 5) + b"hello"
    heard = []

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as stream:
            for _ in range(2):
                heard.append(stream.read(len(STREAM)))
                sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        with recording(listener.getsockname()[1]) as (port, record):
            with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as stream:
                for _ in range(2):
                    client.sendall(STREAM)
                    assert stream.read(len(answer)) == answer
            thread.join(10)
    assert heard == [STREAM, STREAM]
    asked = (Request("SET_TENSOR", 3), Request("GRAPH_RECOMPUTE", 0), Request("GET_TENSOR", 1))
    assert record.exchanges == [Exchange(asked, 5)] * 2
