"""Looks for workers by mDNS."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice, product
from typing import TypeVar

from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
from zeroconf._dns import DNSAddress, DNSPointer, DNSQuestion, DNSRecord, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from app.p2p.announcement import INSTANCE_PATTERN, Announcement, read
from app.p2p.mdns import MAX_ADDRESSES, SERVICE, TTL, Mdns, call
from app.p2p.token import Network

MAX_SIGHTINGS = 512
"""Announcements remembered at a time: more than a LAN has workers."""
MAX_QUESTIONS = 16
"""Incomplete announcements asked about in a `RESCAN`. Ours are complete, and so are most others'."""
ASK_AT = (0.0, 1.0, 4.0, 9.0)
"""Seconds after the start at which everybody is asked: Wi-Fi loses multicast ..."""
ASK_AGAIN = 60.0
"""... and so many seconds after the last time, for ever."""

# RFC 1035, 3.2.2 and 4.1.1; RFC 2782.
_QUERY = 0
_PTR, _TXT, _SRV = 12, 16, 33
_IN = 1
_NAME, _HOST = f".{SERVICE}", ".local."
# Of one record, where others have said another one for it.
_MAX_VERSIONS = 4
# Of what others have said for one name: a genuine one has no more than its addresses.
_MAX_LOOK = 256

RecordT = TypeVar("RecordT", bound=DNSRecord)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting(Announcement):
    """An announcement, and where it is said to lead.

    A worker of one id may be sighted several times: it is announced anew after
    every start, and cloned machines share an id.
    """

    addresses: tuple[str, ...]
    """Numeric and on one of our links, IPv4 first; link-local ones with `%interface`."""


class Browser(Mdns, RecordUpdateListener):
    """Watches the workers that members of `networks` announce.

    `found` is called with each sighting and with each change of one; `gone` when it
    says goodbye, expires, makes room for a newer one, or our own links change: then
    drop the hint, and no live connection. Neither call may take long or call back.

    A packet counts by itself, as ours are complete: what a flood puts in zeroconf's memory, or drives
    out of it, takes nothing from it. zeroconf's browser, which answers each record with work, and its
    questions, into which it copies what it heard, have no part in this.
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
        """By instance; like the next two they belong to zeroconf's thread."""
        self._expiry: dict[str, float] = {}
        """When to forget them."""
        self._asked: set[str] = set()
        """Incomplete ones, since the last look."""
        self._listening = False
        self._ask_at: Iterator[float] = iter(())
        self._next_question = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        now = time.monotonic()
        if not self._listening:
            self._listening = True
            zeroconf.add_listener(self, None)
            self._ask_at, self._next_question = (now + after for after in ASK_AT), now
        if now >= self._next_question:
            zeroconf.send(_question((SERVICE, _PTR)))
            self._next_question = next((at for at in self._ask_at if at > now), now + ASK_AGAIN)
        call(zeroconf, self._expire())

    async def _expire(self) -> None:
        self._asked.clear()
        now = time.monotonic()
        for instance in [instance for instance, at in self._expiry.items() if at <= now]:
            self._lose(instance)

    def _wants(self, record: DNSRecord) -> bool:
        """Of what was proved, so that zeroconf tells of its goodbye."""
        return isinstance(record, DNSPointer) and _instance(record.alias, _NAME) in self._sightings

    def _finish(self, zeroconf: Zeroconf) -> None:
        self._listening = False
        call(zeroconf, self._end(zeroconf))

    async def _end(self, zeroconf: Zeroconf) -> None:
        zeroconf.async_remove_listener(self)
        for instance in [] if self._stopping else list(self._sightings):
            self._lose(instance)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf with what one packet says, or with what has expired."""
        try:
            self._hear(zc, [update.new for update in records], now)
        except Exception:  # one packet must not end what hears the others
            log.exception("an announcement could not be handled")

    def _hear(self, zeroconf: Zeroconf, records: list[DNSRecord], now: float) -> None:
        heard = _Heard(zeroconf)
        named: set[str] = set()
        hosts: set[str] = set()
        for record in records:
            pointer = record.alias if isinstance(record, DNSPointer) and record.key == SERVICE else ""
            if record.is_expired(now):
                self._lose(_instance(pointer, _NAME))
                continue
            heard.add(record)
            named.add(_instance(pointer or record.name, _NAME))
            if isinstance(record, DNSAddress):
                hosts.add(_instance(record.name, _HOST))
        for instance in (named | hosts) - {""}:
            texts, services, addresses = heard.of(instance)
            if texts and services and addresses:
                # What nobody has proved does not take back what somebody has.
                if sighting := self._sighting(instance, texts, services, addresses):
                    self._keep(sighting)
            elif instance in named - self._sightings.keys():
                self._ask(zeroconf, instance)

    def _sighting(
        self, instance: str, texts: list[DNSText], services: list[DNSService], addresses: list[DNSAddress]
    ) -> Sighting | None:
        """What is announced; None when no member of our network says it, or it leads nowhere."""
        for text, service in product(texts, services):
            properties = ServiceInfo(SERVICE, f"x.{SERVICE}", properties=text.text).properties
            announcement = read(self._networks, instance, service.port, properties)
            if announcement is not None and (dialable := self._dialable(_numeric(addresses))):
                return Sighting(**asdict(announcement), addresses=dialable)
        return None

    def _dialable(self, heard: list[IPv4Address | IPv6Address]) -> tuple[str, ...]:
        heard.sort(key=lambda address: (address.version, address.is_link_local))
        dialable = [one.dialable(address) for address in heard for one in self._interfaces]
        return tuple(dict.fromkeys(address for address in dialable if address is not None))[:MAX_ADDRESSES]

    def _keep(self, sighting: Sighting) -> None:
        known = self._sightings.get(sighting.instance)
        if known is not None and set(sighting.addresses) < set(known.addresses):
            sighting = known  # link-local ones are heard over IPv6 only
        if known is None and len(self._sightings) >= MAX_SIGHTINGS:
            # The oldest has had its chance to be dialled.
            self._lose(next(iter(self._sightings)))
        self._sightings[sighting.instance] = sighting
        self._expiry[sighting.instance] = time.monotonic() + TTL
        if sighting != known:
            self._found(sighting)

    def _lose(self, instance: str) -> None:
        sighting = self._sightings.pop(instance, None)
        if sighting is not None:
            del self._expiry[instance]
            self._gone(sighting)

    def _ask(self, zeroconf: Zeroconf, instance: str) -> None:
        """Ask for what is missing, once; the answer is mostly a packet with all of it."""
        if len(self._asked) < MAX_QUESTIONS and instance not in self._asked:
            self._asked.add(instance)
            zeroconf.async_send(_question((instance + _NAME, _SRV), (instance + _NAME, _TXT)))


class _Heard:
    """What one packet says of each worker and, where that is not all, what others have just said."""

    def __init__(self, zeroconf: Zeroconf) -> None:
        self._lately = zeroconf.cache.cache
        self._said: defaultdict[str, list[DNSRecord]] = defaultdict(list)

    def add(self, record: DNSRecord) -> None:
        """The packet says this."""
        self._said[record.key].append(record)

    def of(self, instance: str) -> tuple[list[DNSText], list[DNSService], list[DNSAddress]]:
        """Whatever there is of it, and no more than a genuine one has: anybody may have said it."""
        return (
            self._find(instance + _NAME, DNSText, _MAX_VERSIONS),
            self._find(instance + _NAME, DNSService, _MAX_VERSIONS),
            self._find(instance + _HOST, DNSAddress, 4 * MAX_ADDRESSES),
        )

    def _find(self, key: str, kind: type[RecordT], limit: int) -> list[RecordT]:
        said = [record for record in self._said[key] if isinstance(record, kind)]
        lately = islice(self._lately.get(key, ()), _MAX_LOOK)
        return (said or [record for record in lately if isinstance(record, kind)])[:limit]


def _instance(name: str, suffix: str) -> str:
    """In lower case, or each spelling would be another worker; empty for what cannot be one of ours.

    Of what is no UTF-8 zeroconf makes names that it cannot write in a question.
    """
    match = re.fullmatch(f"({INSTANCE_PATTERN}){re.escape(suffix)}", name.lower())
    return match[1] if match else ""


def _numeric(records: Iterable[DNSAddress]) -> list[IPv4Address | IPv6Address]:
    found: list[IPv4Address | IPv6Address] = []
    for record in records:
        address = ipaddress.ip_address(record.address)
        if address.is_link_local and address.version == 6 and record.scope_id:
            address = ipaddress.ip_address(f"{address}%{record.scope_id}")
        found.append(address)
    return found


def _question(*asked: tuple[str, int]) -> DNSOutgoing:
    """With no known answers: what somebody else put there could keep it from being sent at all."""
    question = DNSOutgoing(_QUERY)
    for name, kind in asked:
        question.add_question(DNSQuestion(name, kind, _IN))
    return question
