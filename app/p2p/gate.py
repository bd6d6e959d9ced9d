"""How many connections there may be, and who has to go when a stranger comes too many.

A stranger is a connection that has not proved that it knows the token. It costs a
thread and a descriptor, so there are few places; a newcomer takes the place of the
oldest stranger of its own source, or of the source that has most of them. Whoever
floods, from one address or some dozens, drives out itself first, and an honest head
needs its place for milliseconds only.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections import Counter
from contextlib import suppress
from threading import Lock

MAX_STRANGERS = 64
"""Connections in all that have not proved themselves."""
MAX_STRANGERS_PER_SOURCE = 16
"""Of these, from one IPv4 address or one IPv6 /64, which is what one machine can choose from."""
MAX_MEMBERS = 256
"""Connections that have: some heads with a control connection each, and one session's data connections."""


REFUSALS_INTERVAL = 30.0
"""Seconds between warnings about refused connections: whoever floods must not fill the log too."""

log = logging.getLogger(__name__)


class Visit:
    """One connection's stay."""

    def __init__(self, sock: socket.socket, source: str) -> None:
        self.source = source
        self._sock = sock

    def send_away(self) -> None:
        """End the connection under its thread, which then closes it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class Gate:
    """Counts visits. Any thread may call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._strangers: list[Visit] = []  # oldest first
        self._members: set[Visit] = set()

    def enter(self, sock: socket.socket, address: str) -> Visit:
        """A stranger has come from the IP `address`; an older one may have to go for it."""
        visit = Visit(sock, _source(address))
        with self._lock:
            places = Counter(other.source for other in self._strangers)
            if places[visit.source] >= MAX_STRANGERS_PER_SOURCE:
                self._send_oldest_away(visit.source)
            elif len(self._strangers) >= MAX_STRANGERS:
                self._send_oldest_away(places.most_common(1)[0][0])
            self._strangers.append(visit)
        return visit

    def prove(self, visit: Visit) -> bool:
        """The stranger is a member; False when there are too many of them already."""
        with self._lock:
            if visit in self._strangers:
                self._strangers.remove(visit)
            if len(self._members) >= MAX_MEMBERS:
                return False
            self._members.add(visit)
            return True

    def leave(self, visit: Visit) -> None:
        """The connection is closed."""
        with self._lock:
            self._members.discard(visit)
            if visit in self._strangers:
                self._strangers.remove(visit)

    def make_room(self) -> None:
        """Send the oldest stranger away: the process is out of descriptors."""
        with self._lock:
            if self._strangers:
                self._send_away(self._strangers[0])

    def clear(self) -> None:
        """Send everybody away."""
        with self._lock:
            for visit in (*self._strangers, *self._members):
                visit.send_away()

    def _send_oldest_away(self, source: str) -> None:
        self._send_away(next(visit for visit in self._strangers if visit.source == source))

    def _send_away(self, visit: Visit) -> None:
        self._strangers.remove(visit)
        visit.send_away()


def _source(address: str) -> str:
    """What counts as one source."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


class Refusals:
    """One warning for many refused connections."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._next = 0.0

    def note(self, source: str, reason: str) -> None:
        """A connection from `source` was refused."""
        log.debug("%s: %s", source, reason)
        with self._lock:
            self._count += 1
            if (now := time.monotonic()) < self._next:
                return
            count, self._count, self._next = self._count, 0, now + REFUSALS_INTERVAL
        log.warning("%d connection(s) without the right token refused, the last from %s", count, source)
