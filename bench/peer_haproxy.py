"""haproxy at both ends in TCP mode, TLS 1.3, each checking the other's certificate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import certificates
from bench.pair import Pair, find
from bench.processes import program, wait_for_port
from tests.live.support import free_ports

# Time-outs are asked for by haproxy itself; all else is the default: a thread per processor, buffers of 16 KiB.
_CONFIGURATION = """\
global
    maxconn 512
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:{accept} {bind}
    server other 127.0.0.1:{connect} {server}
"""


@contextmanager
def start(server: int, scratch: Path) -> Iterator[Pair]:
    """Between a free port and `server`."""
    files = certificates.make(scratch)
    outer, inner = free_ports(2)
    bind = f"ssl crt {files.server} ca-file {files.authority} verify required ssl-min-ver TLSv1.3"
    onward = f"ssl crt {files.client} ca-file {files.authority} verify required ssl-min-ver TLSv1.3"
    ends = {
        "server": _CONFIGURATION.format(accept=inner, bind=bind, connect=server, server=""),
        "client": _CONFIGURATION.format(accept=outer, bind="", connect=inner, server=onward),
    }
    for name, text in ends.items():
        (scratch / f"{name}.cfg").write_text(text)
    haproxy = find("haproxy") or "haproxy"
    with (
        program([haproxy, "-db", "-f", scratch / "server.cfg"], scratch, "server") as far,
        program([haproxy, "-db", "-f", scratch / "client.cfg"], scratch, "client") as near,
    ):
        wait_for_port(far, inner)
        wait_for_port(near, outer)
        yield Pair(outer, (near,), (far,))
