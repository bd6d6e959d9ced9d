"""Stands where rpc-server stands, answers its HELLO, and moves bytes: `python -m tests.faults.stand_in PORT`.

A connection whose first byte is `T` asks for a transfer: how many bytes will come, how many are to be sent, and
for how many seconds nothing is to be read. Both directions run at once; behind its bytes the stand-in sends the SHA-256
of what came and of what it sent.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
import threading
import time

from app.p2p.rpc import Command

TRANSFER = struct.Struct("<cQQd")
BLOCK = 1 << 20
_REQUEST = struct.Struct("<BQ")
_ANSWERS = {
    Command.HELLO: bytes([7, 0, 0]) + bytes(25),
    Command.DEVICE_COUNT: struct.pack("<I", 1),
    Command.GET_DEVICE_MEMORY: struct.pack("<QQ", 1 << 30, 1 << 30),
}


def send(sock: socket.socket, size: int) -> bytes:
    """Send so many random bytes; their SHA-256."""
    digest, block = hashlib.sha256(), os.urandom(BLOCK)
    while size:
        view = memoryview(block)[: min(size, BLOCK)]
        sock.sendall(view)
        digest.update(view)
        size -= len(view)
    return digest.digest()


def receive(sock: socket.socket, size: int) -> bytes:
    """Take so many bytes; their SHA-256. Raises EOFError when they end early."""
    digest, view = hashlib.sha256(), memoryview(bytearray(BLOCK))
    while size:
        taken = sock.recv_into(view[: min(size, BLOCK)])
        if not taken:
            raise EOFError
        digest.update(view[:taken])
        size -= taken
    return digest.digest()


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def ask(port: int, up: int, down: int, *, server_pauses: float = 0.0, we_pause: float = 0.0) -> tuple[bool, float]:
    """A transfer through `port`: whether both hashes agree, and the seconds it took. Raises OSError, EOFError."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(TRANSFER.pack(b"T", up, down, server_pauses))
        sent: list[bytes] = []
        sender = threading.Thread(target=lambda: sent.append(send(sock, up)))
        sender.start()
        time.sleep(we_pause)
        received = receive(sock, down)
        sender.join()
        told = exactly(sock, 64)
    return told == sent[0] + received, time.monotonic() - began


def _serve(sock: socket.socket) -> None:
    with sock:
        try:
            while True:
                first = exactly(sock, 1)
                if first == b"T":
                    _, up, down, pause = TRANSFER.unpack(first + exactly(sock, TRANSFER.size - 1))
                    _transfer(sock, up, down, pause)
                    return
                command, size = _REQUEST.unpack(first + exactly(sock, _REQUEST.size - 1))
                exactly(sock, size)
                answer = _ANSWERS[Command(command)]
                sock.sendall(struct.pack("<Q", len(answer)) + answer)
        except (EOFError, OSError, ValueError):
            pass


def _transfer(sock: socket.socket, up: int, down: int, pause: float) -> None:
    sent: list[bytes] = []
    sender = threading.Thread(target=lambda: sent.append(send(sock, down)))
    sender.start()
    time.sleep(pause)
    received = receive(sock, up)
    sender.join()
    sock.sendall(received + sent[0])


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        print("on", flush=True)
        while True:
            threading.Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
