"""Sends bytes to an echo behind a tunnel and checks what returns: `python -m tests.soak.client RPC SIZE SEED`.

Prints one line: `whole`, `cut` or `wrong`, and how many bytes had returned by then. A cut is an honest end;
what came before it is compared all the same. The exit status is 0 for `whole`.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
import threading
from contextlib import suppress

from tests.soak.echo import request

SILENCE = 40.0
"""Seconds without a byte: more than a dead link needs to be noticed."""
_BLOCK = 1 << 16


def main(rpc: str, size: int, seed: int) -> int:
    sent = random.Random(seed).randbytes(size)
    received = hashlib.sha256()
    count = 0
    host, _, port = rpc.partition(",")[0].rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), SILENCE) as connection:
        threading.Thread(target=_send, args=(connection, sent), daemon=True).start()
        while count < size and (block := connection.recv(_BLOCK)):
            received.update(block)
            count += len(block)
    right = received.digest() == hashlib.sha256(sent[:count]).digest()
    word = "wrong" if not right else "whole" if count == size else "cut"
    print(word, count, flush=True)
    return 0 if word == "whole" else 1


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(request(len(data)))
        connection.sendall(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
