"""The relay's listening socket, and who has its port when it is taken."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

from app.errors import WorkerError, usage_error
from app.p2p.procnet import IPV4, IPV6, holds_one_of, listeners

BACKLOG = 1024


def parse_address(text: str, flag: str) -> tuple[str, int]:
    """`1.2.3.4:5`, `[::]:5` -> address and port. Raises a usage error that names `flag`."""
    host, colon, port = text.rpartition(":")
    if (
        not colon
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
        or (":" in host) != host.startswith("[")
    ):
        raise usage_error(f"{flag} wants ADDR:PORT, not {text!r}", f"such as {flag} 0.0.0.0:25052 or {flag} [::]:25052")
    return host.strip("[]"), int(port)


def listen(address: str, port: int) -> socket.socket:
    """Listen on `address`; on `::` for IPv4 too, and on all of IPv4 alone where the machine has no IPv6.

    Raises `WorkerError` that names who has the port.
    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError):
            return _listen(family, address, port)
        if address == "::":
            return _listen(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 - lending to the LAN is the job
        return _listen(family, address, port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "choose another address with --listen"
        if error.errno == errno.EADDRINUSE:
            holder = holder_of(port)
            reason += f" by {holder}" if holder else ""
            hint = "end it, or choose another port with --listen ADDR:PORT (0 takes any)"
        raise WorkerError(f"cannot listen on {address}:{port}: {reason}", hint) from None


def holder_of(port: int) -> str:
    """`name (pid N)` of the process that listens on TCP `port`; empty when we may not know."""
    inodes = listeners(port, IPV4, IPV6)
    for process in Path("/proc").glob("[0-9]*"):
        if holds_one_of(process, inodes):
            with suppress(OSError):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _listen(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
