"""Looks for workers by mDNS."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from zeroconf import BadTypeInNameException, DNSQuestionType, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from app.p2p.identity import ID_PATTERN
from app.p2p.mdns import MAX_ADDRESSES, SERVICE, Mdns

MAX_SIGHTINGS = 512
"""Announcements remembered at a time: more than a LAN has workers, and little memory when somebody invents them."""
MAX_QUESTIONS = 16
"""Incomplete announcements asked about at a time. Ours are complete, and so are most others'."""
ASK_AGAIN = 60.0
"""Seconds after which a browser asks anew. zeroconf's does so in its first 14 s only, and Wi-Fi loses multicast."""
QUESTION_TIMEOUT_MS = 3000

_PORTS = range(1, 65536)
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_RPC = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """What one announcement says, checked for form and for nothing else.

    A worker of one id may be sighted several times: it is announced anew after
    every start, and cloned machines share an id.
    """

    instance: str
    """Tells announcements apart."""
    worker_id: str
    addresses: tuple[str, ...]
    """Numeric and on one of our links, IPv4 first; link-local ones with `%interface`."""
    port: int
    tag: str
    protocol: int
    rpc: str
    """llama.cpp's RPC protocol, such as `7.0.0`."""


class Browser(Mdns, ServiceListener):
    """Watches the workers that announce one of `tags`.

    `found` is called with each sighting and with each change of one; `gone` when it
    says goodbye, expires, makes room for a newer one, or our own links change: then
    drop the hint, and no live connection. Neither call may take long or call back.
    """

    def __init__(
        self,
        tags: Collection[str],
        found: Callable[[Sighting], None],
        gone: Callable[[Sighting], None],
        *,
        interfaces: Collection[str] = (),
        enabled: bool = True,
    ) -> None:
        super().__init__(interfaces, enabled)
        self._tags = frozenset(tags)
        self._found = found
        self._gone = gone
        self._sightings: dict[str, Sighting] = {}
        self._asking: dict[str, Future[bool]] = {}
        self._browser: ServiceBrowser | None = None
        self._ask_at = 0.0

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
        if sighting is None:
            self._lose(name)
        elif sighting != self._sightings.get(name):
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
        """What the announcement says; None when it is not of our network or not one of ours."""
        instance = info.get_name()
        text = {key: value.decode("ascii", "replace") for key, value in info.properties.items() if value is not None}
        tag, worker_id, rpc, version = (text.get(key, "") for key in (b"tag", b"id", b"rpc", b"v"))
        port = info.port or 0
        if tag not in self._tags or port not in _PORTS or not _LABEL.fullmatch(instance):
            return None
        if not (re.fullmatch(ID_PATTERN, worker_id) and _RPC.fullmatch(rpc) and re.fullmatch("[0-9]{1,4}", version)):
            return None
        heard = [ipaddress.ip_address(address) for address in info.parsed_scoped_addresses()[: 4 * MAX_ADDRESSES]]
        heard.sort(key=lambda address: (address.version, address.is_link_local))
        dialable = [one.dialable(address) for address in heard for one in self._interfaces]
        addresses = tuple(dict.fromkeys(address for address in dialable if address is not None))[:MAX_ADDRESSES]
        return Sighting(instance, worker_id, addresses, port, tag, int(version), rpc) if addresses else None
