"""Connections without the token, of every bad kind: `python -m tests.soak.stranger HOST PORT SECONDS SEED`.

Silent ones, ones that stop in the middle of their first record, noise, handshakes of another network, aborts.
Prints how many it made.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import sys
import time
from collections import deque
from contextlib import suppress

from app.p2p.channel import Channel, ChannelError
from app.p2p.identity import Role, authority, client_context, mint
from app.p2p.token import generate, network, parse

HELD = 40
"""Connections held open: more than a worker lets one source have."""
PAUSE = 0.02
LIMIT = 10.0
_ABORT = struct.pack("ii", 1, 0)


def main(host: str, port: int, seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    other = authority(network(parse(generate())))
    context = client_context(mint(other, Role.HEAD, "stranger"))
    held: deque[socket.socket] = deque()
    made = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            held.append(sock := socket.create_connection((host, port), LIMIT))
            made += 1
            _misbehave(sock, context, other.tag, chance)
        while len(held) > HELD:
            held.popleft().close()
        time.sleep(PAUSE)
    print(made, flush=True)


def _misbehave(sock: socket.socket, context: ssl.SSLContext, tag: str, chance: random.Random) -> None:
    match chance.choice(["silent", "half", "noise", "other token", "abort"]):
        case "half" | "abort" as kind:
            outgoing = ssl.MemoryBIO()
            with suppress(ssl.SSLWantReadError):
                context.wrap_bio(ssl.MemoryBIO(), outgoing, False, tag).do_handshake()
            sock.sendall(outgoing.read()[: chance.randrange(1, 200)])
            if kind == "abort":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                sock.close()
        case "noise":
            sock.sendall(chance.randbytes(chance.randrange(1, 4096)))
        case "other token":
            channel = Channel(sock, context, server_side=False, server_hostname=tag)
            with suppress(ChannelError):
                channel.handshake(LIMIT)
                channel.read(1, LIMIT)
                print("it was let in", flush=True)
            channel.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
