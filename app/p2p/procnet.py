"""Linux's tables of TCP sockets, and which process has which (proc(5))."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = 0x01  # include/net/tcp_states.h
LISTEN = 0x0A
IPV4 = Path("/proc/self/net/tcp")
IPV6 = Path("/proc/self/net/tcp6")
"""IPv4 connections to a socket of both families stand here, with mapped addresses."""


@dataclass(frozen=True)
class Row:
    """One socket of our network namespace; addresses as the kernel prints them: words of hex in host order."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    state: int
    uid: int
    inode: int
    """0 once no process has it."""


def rows(table: Path) -> Iterator[Row]:
    """Every socket in `IPV4` or `IPV6`; none where the kernel has no such table."""
    with suppress(FileNotFoundError):
        for line in table.read_text().splitlines()[1:]:
            _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
            local, _, local_port = local.partition(":")
            remote, _, remote_port = remote.partition(":")
            yield Row(local, int(local_port, 16), remote, int(remote_port, 16), int(state, 16), int(uid), int(inode))


def listeners(port: int, *tables: Path) -> set[int]:
    """The inodes of the sockets that listen on `port`."""
    return {row.inode for table in tables for row in rows(table) if row.state == LISTEN and row.local_port == port}


def holds_one_of(process: Path, inodes: set[int]) -> bool:
    """Whether `/proc/<pid>` has a descriptor of one of these sockets; False where we may not look."""
    names = {f"socket:[{inode}]" for inode in inodes}
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                if str(descriptor.readlink()) in names:
                    return True
    return False
