"""Looks for workers by mDNS."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import asdict, dataclass

from zeroconf import BadTypeInNameException, DNSQuestionType, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from app.p2p.announcement import Announcement, read
from app.p2p.mdns import MAX_ADDRESSES, SERVICE, Mdns, call
from app.p2p.token import Network

MAX_SIGHTINGS = 512
"""Announcements remembered at a time: more than a LAN has workers."""
MAX_QUESTIONS = 16
"""Incomplete announcements asked about at a time. Ours are complete, and so are most others'."""
ASK_AGAIN = 60.0
"""Seconds after which a browser asks anew. zeroconf's does so in its first 14 s only, and Wi-Fi loses multicast."""
QUESTION_TIMEOUT_MS = 3000
MAX_RECORDS = 8192
"""Of all mDNS, heard at a time. At 10,000 zeroconf begins to forget whatever expires first, which in a flood is
what is genuine.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting(Announcement):
    """An announcement, and where it is said to lead.

    A worker of one id may be sighted several times: it is announced anew after
    every start, and cloned machines share an id.
    """

    addresses: tuple[str, ...]
    """Numeric and on one of our links, IPv4 first; link-local ones with `%interface`."""


class Browser(Mdns, ServiceListener):
    """Watches the workers that members of `networks` announce.

    `found` is called with each sighting and with each change of one; `gone` when it
    says goodbye, expires, makes room for a newer one, or our own links change: then
    drop the hint, and no live connection. Neither call may take long or call back.
    """

    def __init__(
        self,
        networks: Collection[Network],
        found: Callable[[Sighting], None],
        gone: Callable[[Sighting], None],
        *,
        interfaces: Collection[str] = (),
        enabled: bool = True,
    ) -> None:
        super().__init__(interfaces, enabled)
        self._networks = tuple(networks)
        self._found = found
        self._gone = gone
        self._sightings: dict[str, Sighting] = {}
        self._asking: dict[str, Future[bool]] = {}
        self._browser: ServiceBrowser | None = None
        self._ask_at = 0.0
        self._told_of_a_flood = False

    def start(self) -> None:
        """Begin to look."""
        self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        now = time.monotonic()
        if self._browser is not None and now >= self._ask_at:
            self._browser.cancel()
            self._browser = None
        if self._browser is None:
            # Answers for one program would go astray where several on a machine share the port (RFC 6762, 15.1).
            self._browser = ServiceBrowser(zeroconf, SERVICE, listener=self, question_type=DNSQuestionType.QM)
            self._ask_at = now + ASK_AGAIN

    def _is_spoilt(self, zeroconf: Zeroconf) -> bool:
        if call(zeroconf, _records(zeroconf)) < MAX_RECORDS:
            return False
        if not self._told_of_a_flood:
            self._told_of_a_flood = True
            log.warning(
                "somebody floods mDNS: workers are found late, or not at all unless --peer HOST:PORT names them"
            )
        return True

    def _finish(self, zeroconf: Zeroconf) -> None:  # noqa: ARG002 - the browser knows it
        if self._browser is not None:
            self._browser.cancel()
            self._browser = None
        for question in list(self._asking.values()):
            question.cancel()
        for name in [] if self._stopping else list(self._sightings):
            self._lose(name)

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002 - zeroconf's signature
        """Called by zeroconf."""
        self._heard(zc, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        """Called by zeroconf."""
        self._heard(zc, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        """Called by zeroconf."""
        self._heard(None, name)

    def _heard(self, zeroconf: Zeroconf | None, name: str) -> None:
        name = name.lower()  # or each spelling would be another worker
        try:
            if zeroconf is None:
                self._lose(name)
            else:
                self._look(zeroconf, name)
        except Exception:  # one announcement must not end the thread that hears the others
            log.exception("an announcement could not be handled")

    def _look(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = ServiceInfo(SERVICE, name)
        except BadTypeInNameException:
            return
        if not info.load_from_cache(zeroconf):
            if name not in self._sightings:  # else its address records are old, and no news
                self._ask(zeroconf, info)
            return
        sighting = self._read(info)
        # What nobody has proved does not take back what somebody has.
        if sighting is not None and sighting != self._sightings.get(name):
            if name not in self._sightings and len(self._sightings) >= MAX_SIGHTINGS:
                # The oldest has had its chance to be dialled; a newcomer may be genuine.
                self._lose(next(iter(self._sightings)))
            self._sightings[name] = sighting
            self._found(sighting)

    def _lose(self, name: str) -> None:
        sighting = self._sightings.pop(name, None)
        if sighting is not None:
            self._gone(sighting)

    def _ask(self, zeroconf: Zeroconf, info: ServiceInfo) -> None:
        """Ask for the records that are missing; zeroconf calls `update_service` for each that comes."""
        name = info.name
        if name in self._asking or len(self._asking) >= MAX_QUESTIONS or zeroconf.loop is None:
            return
        request = info.async_request(zeroconf, QUESTION_TIMEOUT_MS, DNSQuestionType.QM)
        question = self._asking[name] = asyncio.run_coroutine_threadsafe(request, zeroconf.loop)
        question.add_done_callback(lambda _: self._asking.pop(name, None))

    def _read(self, info: ServiceInfo) -> Sighting | None:
        """What is announced; None when no member of our network says it, or it leads nowhere."""
        announcement = read(self._networks, info.get_name(), info.port, info.properties)
        if announcement is None:
            return None
        heard = [ipaddress.ip_address(address) for address in info.parsed_scoped_addresses()[: 4 * MAX_ADDRESSES]]
        heard.sort(key=lambda address: (address.version, address.is_link_local))
        dialable = [one.dialable(address) for address in heard for one in self._interfaces]
        addresses = tuple(dict.fromkeys(address for address in dialable if address is not None))[:MAX_ADDRESSES]
        return Sighting(**asdict(announcement), addresses=addresses) if addresses else None


async def _records(zeroconf: Zeroconf) -> int:
    """How many it remembers."""
    return sum(map(len, zeroconf.cache.cache.values()))
