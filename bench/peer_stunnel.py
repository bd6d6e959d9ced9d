"""stunnel at both ends, TLS 1.3, each checking the other's certificate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import certificates
from bench.pair import Pair, find
from bench.processes import program, wait_for_port
from tests.live.support import free_ports

# Without TCP_NODELAY small messages would wait for each other; all else is the default.
_CONFIGURATION = """\
foreground = yes
pid =
debug = notice
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[bench]
client = {client}
accept = 127.0.0.1:{accept}
connect = 127.0.0.1:{connect}
cert = {cert}
CAfile = {authority}
verifyChain = yes
sslVersion = TLSv1.3
"""


@contextmanager
def start(server: int, scratch: Path) -> Iterator[Pair]:
    """Between a free port and `server`."""
    files = certificates.make(scratch)
    outer, inner = free_ports(2)
    ends = {
        "server": _CONFIGURATION.format(
            client="no", accept=inner, connect=server, cert=files.server, authority=files.authority
        ),
        "client": _CONFIGURATION.format(
            client="yes", accept=outer, connect=inner, cert=files.client, authority=files.authority
        ),
    }
    for name, text in ends.items():
        (scratch / f"{name}.conf").write_text(text)
    stunnel = find("stunnel4") or "stunnel4"
    with (
        program([stunnel, scratch / "server.conf"], scratch, "server") as far,
        program([stunnel, scratch / "client.conf"], scratch, "client") as near,
    ):
        wait_for_port(far, inner)
        wait_for_port(near, outer)
        yield Pair(outer, (near,), (far,))
