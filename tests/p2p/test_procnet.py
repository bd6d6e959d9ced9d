"""Goal: the kernel's tables are read as they are: which socket is whose, in which state."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from app.p2p.procnet import ESTABLISHED, IPV4, IPV6, LISTEN, holds_one_of, listeners, rows

OURS = Path(f"/proc/{os.getpid()}")


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_a_listener_and_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listeners(port, IPV4, IPV6) == {inode(server)}
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0]:
            (row,) = [row for row in rows(IPV4) if row.inode == inode(client)]
            assert (row.state, row.uid) == (ESTABLISHED, os.geteuid())
            assert (row.local_port, row.remote_port) == (client.getsockname()[1], port)
            assert row.local == row.remote == "0100007F"
            (row,) = [row for row in rows(IPV4) if row.inode == inode(server)]
            assert row.state == LISTEN
    assert listeners(port, IPV4, IPV6) == set()


def test_whose_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert holds_one_of(OURS, {inode(server)})
        assert not holds_one_of(OURS, {inode(server) + 10_000_000})
        assert not holds_one_of(Path("/proc/1"), {inode(server)})
    assert not holds_one_of(Path("/proc/nobody"), {1})


def test_a_table_that_is_not_there() -> None:
    assert list(rows(Path("/proc/self/net/none"))) == []
