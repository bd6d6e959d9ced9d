"""May this local program use the tunnel? The kernel's socket tables tell whose connection it is."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
"""The second one too: a program may have dialled `::ffff:127.0.0.1`."""
_ESTABLISHED = "01"  # TCP_ESTABLISHED of <linux/tcp_states.h>
# Columns of proc_net_tcp.rst, section "socket entry".
_LOCAL, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9
_MAPPED = b"\0" * 10 + b"\xff\xff"
"""Before an IPv4 address it makes an IPv6 address (RFC 4291, 2.5.5.2)."""
_WORD = 4


def refusal(sock: socket.socket) -> str | None:
    """Why the program at the other end of `sock`, accepted on an IPv4 loopback address, is not let in; None if it is.

    It must be connected at this moment, and belong to our user or root. A socket
    that was closed already has lost its owner: its row shows uid 0 and inode 0, and
    whoever it was must not pass for root.
    """
    client, server = sock.getpeername(), sock.getsockname()
    for row in _rows():
        if (row[_LOCAL], row[_REMOTE]) in _spellings(client, server):
            if row[_STATE] != _ESTABLISHED or row[_INODE] == "0":
                return "it has gone already"
            if int(row[_UID]) not in (0, os.geteuid()):
                return f"it belongs to another user, uid {row[_UID]}"
            return None
    return "it is in no table of this machine's connections"


def _rows() -> Iterator[list[str]]:
    for table in _TABLES:
        try:
            lines = Path(table).read_text().splitlines()
        except FileNotFoundError:  # a kernel without IPv6
            continue
        yield from (line.split() for line in lines[1:])


def _spellings(client: tuple[str, int], server: tuple[str, int]) -> list[tuple[str, str]]:
    """How the two tables write the client's row: its own address, then ours."""
    return [(_hex(client, prefix), _hex(server, prefix)) for prefix in (b"", _MAPPED)]


def _hex(address: tuple[str, int], prefix: bytes) -> str:
    """Each 32-bit word as an integer of this machine's byte order, then the port."""
    packed = prefix + socket.inet_aton(address[0])
    words = (packed[at : at + _WORD] for at in range(0, len(packed), _WORD))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
