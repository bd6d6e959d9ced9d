"""A backend that can be checked: `python -m tests.soak.echo PORT` answers what a worker asks, and returns what it gets.

It speaks enough of llama.cpp's RPC to be taken for an rpc-server, and one command of its own, `ECHO`.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

ECHO = 0xEE
"""Far from llama.cpp's commands: the server returns every byte of the request."""
_REQUEST = struct.Struct("<BQ")
_HELLO, _DEVICE_COUNT, _GET_DEVICE_MEMORY = 14, 15, 11
_ANSWERS = {
    _HELLO: bytes([7, 0, 0]) + bytes(25),
    _DEVICE_COUNT: struct.pack("<I", 1),
    _GET_DEVICE_MEMORY: struct.pack("<QQ", 1 << 30, 2 << 30),
}
_BLOCK = 1 << 16


def request(size: int) -> bytes:
    """The head of a request to return `size` bytes."""
    return _REQUEST.pack(ECHO, size)


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as incoming:
        try:
            while len(head := incoming.read(_REQUEST.size)) == _REQUEST.size:
                command, size = _REQUEST.unpack(head)
                if command == ECHO:
                    while size and (block := incoming.read1(min(size, _BLOCK))):
                        connection.sendall(block)
                        size -= len(block)
                else:
                    incoming.read(size)
                    connection.sendall(struct.pack("<Q", len(_ANSWERS[command])) + _ANSWERS[command])
        except OSError:  # the worker, or the head behind it, has gone
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
