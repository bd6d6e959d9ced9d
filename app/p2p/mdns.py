"""What announcing and looking by mDNS share: a Zeroconf that follows this machine's interfaces.

All of it is public, and what is heard are hints where to dial: who answers there,
TLS proves. Where mDNS fails (no network, its port taken) that is logged, never raised.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from threading import Event, Thread
from typing import Any, TypeVar

from zeroconf import Zeroconf
from zeroconf._dns import DNSRecord

from app.p2p.interfaces import Interface, suitable

SERVICE = "_llamarpc._tcp.local."
MAX_ADDRESSES = 16
"""Of one worker."""
TTL = 1125
"""Seconds that an announcement is remembered. That of a worker that ended without a goodbye is a dead hint, so it is
short: the least that zeroconf accepts (RFC 6762, 10, suggests 4500).
"""

RESCAN = 2.0
"""Seconds between two looks at the interfaces: a new address is announced well within ten."""
CALL_TIMEOUT = 5.0
"""Seconds for a call into zeroconf's own thread, which never waits for the network there."""
CLOSE_TIMEOUT = 3.0
"""Seconds for the goodbye, which is sent three times within a quarter of one."""

_MDNS_PORT = 5353

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


class Mdns:
    """A Zeroconf on the suitable interfaces, kept in step with them by a thread.

    That thread alone calls zeroconf: whoever wants something of it changes what
    `_work` looks at and wakes it.
    """

    def __init__(self, interfaces: Collection[str], enabled: bool) -> None:
        self._named = frozenset(interfaces)
        self._enabled = enabled
        self._interfaces: tuple[Interface, ...] = ()
        self._zeroconf: Zeroconf | None = None
        self._trouble = ""
        self._stopping = False
        self._awake = Event()
        self._thread = Thread(target=self._run, name="mdns", daemon=True)

    def _work(self, zeroconf: Zeroconf) -> None:
        """Bring about what is wanted."""
        raise NotImplementedError

    def _wants(self, record: DNSRecord) -> bool:  # noqa: ARG002 - for those who want some
        """Whether zeroconf is to remember what somebody has said."""
        return False

    def _finish(self, zeroconf: Zeroconf) -> None:
        """Before `zeroconf` says goodbye and is closed."""
        raise NotImplementedError

    def _wake(self) -> None:
        if self._enabled and not self._thread.is_alive() and not self._stopping:
            # What zeroconf has to say is what any packet makes it say, or what we say better.
            logging.getLogger("zeroconf").setLevel(logging.CRITICAL + 1)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)  # its errors go there
            self._thread.start()
        self._awake.set()

    def close(self) -> None:
        """End it, with a goodbye; not from a callback."""
        self._stopping = True
        self._awake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while not self._stopping:
            self._awake.clear()
            self._guard(self._step)
            if not self._stopping:
                self._awake.wait(RESCAN)
        self._guard(self._shut)

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # whatever zeroconf meets, static peers must go on
            self._warn(str(error) or type(error).__name__)

    def _warn(self, trouble: str) -> None:
        """Once for each trouble, not every time it is met."""
        if trouble not in ("", self._trouble):
            log.warning("mDNS does not work, only static peers do: %s", trouble)
        elif self._trouble and not trouble:
            log.info("mDNS works now")
        self._trouble = trouble

    def _step(self) -> None:
        interfaces = suitable(self._named)
        if interfaces != self._interfaces:
            # Begin anew. What was heard on the old links is no hint any more, and
            # while it is remembered nobody would say it again (RFC 6762, 7.1).
            self._shut()
            self._interfaces = interfaces
        if not interfaces:
            self._warn(f"no usable network interface{' of the given name' if self._named else ''}")
            return
        if self._zeroconf is None:
            self._zeroconf = _open([sender for one in interfaces for sender in one.senders()])
            log.debug("mDNS on %s", ", ".join(one.name for one in interfaces))
        self._warn("")
        self._work(self._zeroconf)
        call(self._zeroconf, self._forget(self._zeroconf))

    async def _forget(self, zeroconf: Zeroconf) -> None:
        """Make zeroconf forget what anybody on the LAN has filled its memory with."""
        remembered = [record for records in zeroconf.cache.cache.values() for record in records]
        for record in remembered:
            if not self._wants(record):
                with suppress(KeyError):  # some that are heard twice are half forgotten already
                    zeroconf.cache.async_remove_records((record,))

    def _shut(self) -> None:
        if self._zeroconf is not None:
            self._finish(self._zeroconf)
            self._zeroconf.close()  # where it raises, it is tried again: an open one would listen for ever
            self._zeroconf = None


def _open(senders: list[str]) -> Zeroconf:
    # zeroconf would leave its socket open when that fails.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", _MDNS_PORT))
        except OSError as error:
            raise OSError(f"udp port {_MDNS_PORT}: {(error.strerror or str(error)).lower()}") from None
    return Zeroconf(interfaces=senders, use_asyncio=False)


def call(zeroconf: Zeroconf, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What it returns in zeroconf's thread."""
    assert zeroconf.loop is not None
    return asyncio.run_coroutine_threadsafe(coroutine, zeroconf.loop).result(CALL_TIMEOUT)
