"""mDNS: a worker announces itself, a head looks for announcements. Both are hints; identity is what TLS proves.

Nothing depends on it: where multicast does not work there is one warning, and what
else leads to workers goes on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, RLock, Thread
from typing import Any

from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from app.p2p.interfaces import Interface, on_link, suitable
from app.p2p.peers import Peer

SERVICE = "_llamarpc._tcp.local."
TTL = 120
"""Seconds that others keep our records: a worker that vanished is forgotten after that."""
RESCAN = 3.0
"""Seconds between looks at this machine's interfaces; a new address is announced at the next one."""
RESOLVE_LIMIT = 1500
"""Milliseconds for the rest of an announcement that came in pieces."""
MAX_RESOLVING = 32
"""Announcements that are asked for the rest of them at once."""
MAX_SIGHTINGS = 512
"""Announcements that are remembered; the oldest goes for a new one. Anybody on the LAN can invent them."""
MAX_ADDRESSES = 16
"""Of one announcement."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,48}")
_RPC = re.compile(r"[0-9.]{1,20}")

logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # what it has to say we say, once
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """One announcement of the network that is looked for, all of it unproved."""

    key: str
    """The instance name: tells announcements apart."""
    worker_id: str
    addresses: tuple[str, ...]
    """On-link ones only; IPv6 link-local ones with their scope."""
    port: int
    rpc: str


class _Multicast:
    """A `Zeroconf` that follows the interfaces, from the first moment that there is one."""

    def __init__(self, interfaces: Sequence[str]) -> None:
        self._names = interfaces
        self._interfaces: tuple[Interface, ...] = ()
        self._zeroconf: Zeroconf | None = None
        self._lock = RLock()
        self._warned = False
        self._closing = Event()
        self._thread = Thread(target=self._watch, name="mdns", daemon=True)

    def start(self) -> None:
        self._look()
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            if self._zeroconf is not None:
                with suppress(Exception):  # whatever state its sockets are in, we are done with them
                    self._zeroconf.close()
                self._zeroconf = None

    def opened(self, zeroconf: Zeroconf) -> None:
        """Called when mDNS works, under the lock."""

    def moved(self, zeroconf: Zeroconf) -> None:
        """Called when this machine's addresses have changed, under the lock."""

    def _watch(self) -> None:
        while not self._closing.wait(RESCAN):
            self._look()

    def _look(self) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            try:
                self._reconcile(suitable(self._names))
            except Exception as error:  # of zeroconf, asyncio and the system; nothing depends on mDNS
                self._warn(str(error) or type(error).__name__)

    def _reconcile(self, interfaces: tuple[Interface, ...]) -> None:
        if interfaces == self._interfaces and self._zeroconf is not None:
            return
        if not interfaces:
            self._interfaces = interfaces
            self._warn(f"no interface {' or '.join(self._names)}" if self._names else "no network that can multicast")
            return
        addresses = [str(address.ip) for interface in interfaces for address in interface.addresses]
        if self._zeroconf is None:
            self._zeroconf = Zeroconf(interfaces=addresses, ip_version=IPVersion.All)
            self._interfaces = interfaces
            self.opened(self._zeroconf)
        else:
            self._zeroconf.update_interfaces(interfaces=addresses)
            self._interfaces = interfaces
            self.moved(self._zeroconf)
        self._warned = False
        log.debug("mdns on %s", ", ".join(interface.name for interface in interfaces))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("mdns does not work: %s; workers can still be named with --peer", reason)


class Announcer(_Multicast):
    """Announces one worker while it can serve. Any thread may call."""

    def __init__(
        self,
        worker_id: str,
        tags: Sequence[str],
        *,
        port: int,
        protocol: int,
        interfaces: Sequence[str] = (),
        advertise: Peer | None = None,
    ) -> None:
        """`tags` of the networks served; `advertise` in place of this machine's addresses and `port`."""
        super().__init__(interfaces)
        # An id may be there twice (a cloned machine), and both must be found. So the
        # name is never the same, and need not be probed for: that would take 1.5 s.
        self._instance = f"{worker_id}-{secrets.token_hex(4)}"
        self._fields = {"v": str(protocol), "tag": ",".join(tags), "id": worker_id}
        self._port = port
        self._advertise = advertise
        self._rpc: str | None = None
        self._info: ServiceInfo | None = None

    def announce(self, rpc: str) -> None:
        """The worker serves RPC version `rpc`."""
        with self._lock:
            self._rpc = rpc
            if self._zeroconf is not None:
                self._guarded(self._register, self._zeroconf)

    def withdraw(self) -> None:
        """It does not serve: say goodbye to those who listen."""
        with self._lock:
            self._rpc = None
            if self._zeroconf is not None and self._info is not None:
                self._guarded(self._zeroconf.unregister_service, self._info)
            self._info = None

    def close(self) -> None:
        """Say goodbye, and be silent."""
        self.withdraw()
        super().close()

    def opened(self, zeroconf: Zeroconf) -> None:
        if self._rpc is not None:
            self._register(zeroconf)

    def moved(self, zeroconf: Zeroconf) -> None:
        if self._rpc is not None:
            self._register(zeroconf)

    def _register(self, zeroconf: Zeroconf) -> None:
        info = self._describe()
        if self._info is None:
            zeroconf.register_service(info, cooperating_responders=True)
        else:
            zeroconf.update_service(info)
        self._info = info

    def _describe(self) -> ServiceInfo:
        own = [str(address.ip) for interface in self._interfaces for address in interface.addresses]
        return ServiceInfo(
            SERVICE,
            f"{self._instance}.{SERVICE}",
            port=self._advertise.port if self._advertise else self._port,
            properties={**self._fields, "rpc": self._rpc or ""},
            server=f"{self._instance}.local.",  # not the host's name: everybody reads it
            host_ttl=TTL,
            other_ttl=TTL,
            parsed_addresses=[self._advertise.host] if self._advertise else own,
        )

    def _guarded(self, action: Callable[[Any], object], argument: object) -> None:
        try:
            action(argument)
        except Exception as error:  # as in `_look`
            self._warn(str(error) or type(error).__name__)


class Browser(_Multicast):
    """Looks for the workers of one network. The callbacks come from one thread at a time and must return soon."""

    def __init__(
        self,
        tag: str,
        on_sighting: Callable[[Sighting], None],
        on_gone: Callable[[str], None],
        interfaces: Sequence[str] = (),
    ) -> None:
        """`on_gone` gets the key of a sighting whose announcement has ended."""
        super().__init__(interfaces)
        self._tag = tag
        self._on_sighting = on_sighting
        self._on_gone = on_gone
        self._sightings: dict[str, Sighting] = {}  # oldest first
        self._resolving: set[str] = set()
        self._telling = RLock()

    def opened(self, zeroconf: Zeroconf) -> None:
        ServiceBrowser(zeroconf, SERVICE, handlers=[self._changed])

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            with self._telling:
                if self._sightings.pop(name, None) is not None:
                    self._on_gone(name)
            return
        info = ServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._note(info)
        elif name not in self._resolving and len(self._resolving) < MAX_RESOLVING and zeroconf.loop is not None:
            self._resolving.add(name)
            request = asyncio.run_coroutine_threadsafe(info.async_request(zeroconf, RESOLVE_LIMIT), zeroconf.loop)
            request.add_done_callback(lambda future: self._resolved(info, future))

    def _resolved(self, info: ServiceInfo, future: Future[bool]) -> None:
        self._resolving.discard(info.name)
        if not future.cancelled() and future.exception() is None and future.result():
            self._note(info)

    def _note(self, info: ServiceInfo) -> None:
        sighting = self._read(info)
        if sighting is None:
            return
        with self._telling:
            if self._sightings.get(sighting.key) == sighting:
                return
            self._sightings.pop(sighting.key, None)
            if len(self._sightings) >= MAX_SIGHTINGS:
                oldest = next(iter(self._sightings))
                del self._sightings[oldest]
                self._on_gone(oldest)
            self._sightings[sighting.key] = sighting
            self._on_sighting(sighting)

    def _read(self, info: ServiceInfo) -> Sighting | None:
        """The announcement, if it is of our network and in bounds."""
        fields = {key: value or "" for key, value in info.decoded_properties.items()}
        worker_id, rpc = fields.get("id", ""), fields.get("rpc", "")
        if self._tag not in fields.get("tag", "").split(",") or not _ID.fullmatch(worker_id):
            return None
        announced = info.parsed_scoped_addresses()[: 2 * MAX_ADDRESSES]
        on_links = (place for address in announced for place in on_link(address, self._interfaces))
        addresses = tuple(dict.fromkeys(on_links))[:MAX_ADDRESSES]
        if not addresses or not info.port:
            return None
        return Sighting(info.name, worker_id, addresses, info.port, rpc if _RPC.fullmatch(rpc) else "")
