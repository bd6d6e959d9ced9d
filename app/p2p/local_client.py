"""May this local program use the tunnel? The kernel's socket tables tell whose connection it is."""

from __future__ import annotations

import os
import socket
import sys

from app.p2p.procnet import ESTABLISHED, IPV4, IPV6, rows

_MAPPED = b"\0" * 10 + b"\xff\xff"
"""Before an IPv4 address it makes an IPv6 address (RFC 4291, 2.5.5.2): a program may dial `::ffff:127.0.0.1`."""
_WORD = 4
_READS = 3
"""A table is read piece by piece while it changes, and a row may be passed over."""


def refusal(sock: socket.socket) -> str | None:
    """Why the program at the other end of `sock`, accepted on an IPv4 loopback address, is not let in; None if it is.

    It must be connected at this moment, and belong to our user or root. A socket
    that was closed already has lost its owner: its row shows uid 0 and inode 0, and
    whoever that was must not pass for root. Raises OSError when it is not connected at all.
    """
    client, server = sock.getpeername(), sock.getsockname()
    for _ in range(_READS):
        for table, prefix in ((IPV4, b""), (IPV6, _MAPPED)):
            wanted = (_hex(prefix, client[0]), client[1], _hex(prefix, server[0]), server[1])
            for row in rows(table):
                if (row.local, row.local_port, row.remote, row.remote_port) == wanted:
                    return _judge(row.state, row.uid, row.inode)
    return "it is not among this machine's connections"


def _judge(state: int, uid: int, inode: int) -> str | None:
    if state != ESTABLISHED or inode == 0:
        return "it has gone already"
    if uid not in (0, os.geteuid()):
        return f"it belongs to another user, uid {uid}"
    return None


def _hex(prefix: bytes, address: str) -> str:
    """As the tables write an address: each 32-bit word as an integer of this machine's byte order."""
    packed = prefix + socket.inet_aton(address)
    words = (packed[at : at + _WORD] for at in range(0, len(packed), _WORD))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
