"""The server behind every relay: `python -m bench.endpoint` prints its port and plays the script of each client.

To a worker's probe it answers as rpc-server does; a script begins with `[`, an RPC connection with HELLO.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from bench.processes import program, wait_for_text
from bench.traffic import serve

# ggml-rpc.cpp: u8 command, u64 size, request; u64 size, answer. Protocol 7.0.0, one device of 2 GiB.
_REQUEST = struct.Struct("<BQ")
_ANSWERS = {
    14: struct.pack("<QBBBx24x", 28, 7, 0, 0),  # HELLO
    15: struct.pack("<QI", 4, 1),  # DEVICE_COUNT
    11: struct.pack("<QQQ", 16, 1 << 31, 1 << 31),  # GET_DEVICE_MEMORY
}
_BACKLOG = 128


@contextmanager
def endpoint(scratch: Path) -> Iterator[int]:
    """The port of an endpoint that runs in a process of its own."""
    with program([sys.executable, "-m", "bench.endpoint"], scratch, "endpoint") as running:
        yield int(wait_for_text(running, running.out, r"(\d+)\n")[1])


def _answer(sock: socket.socket) -> None:
    with sock, suppress(EOFError, ConnectionError):
        begin = sock.recv(1)
        if begin == b"[":
            serve(sock, begin)
            sock.recv(1)  # the client closes first, as llama.cpp's do
        elif begin:
            _answer_rpc(sock, begin)


def _answer_rpc(sock: socket.socket, begin: bytes) -> None:
    with sock.makefile("rb") as stream:
        while len(header := begin + stream.read(_REQUEST.size - len(begin))) == _REQUEST.size:
            command, size = _REQUEST.unpack(header)
            stream.read(size)
            sock.sendall(_ANSWERS[command])
            begin = b""


def main() -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        Thread(target=_answer, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
