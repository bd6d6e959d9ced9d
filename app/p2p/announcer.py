"""Announces a worker by mDNS."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from zeroconf import ServiceInfo, Zeroconf

from app.errors import usage_error
from app.p2p.mdns import MAX_ADDRESSES, SERVICE, Mdns, call
from app.p2p.peers import parse_peer

# What is remembered of a worker that ended without a goodbye is a dead hint, so
# make it short: the least that zeroconf accepts (RFC 6762, 10, suggests 4500).
_TTL = 1125


@dataclass(frozen=True)
class _Statement:
    """What is announced at a time."""

    labels: tuple[str, ...]
    """One for each network."""
    rpc: str


class Announcer(Mdns):
    """Says on the LAN that a worker is here, once for each network it serves; all calls return at once.

    Instance and host name are the worker id and a number drawn anew each time:
    cloned machines of one id do not deny each other's records, a late goodbye
    cannot take back a later announcement, and probing for a namesake first, which
    takes zeroconf 1.5 s, would find none.
    """

    def __init__(
        self,
        worker_id: str,
        tags: Sequence[str],
        *,
        port: int,
        protocol: int,
        interfaces: Collection[str] = (),
        advertise: str | None = None,
        enabled: bool = True,
    ) -> None:
        """`advertise`, ADDR[:PORT], is announced in place of the machine's own; a usage error when it is no address."""
        super().__init__(interfaces, enabled)
        self._worker_id = worker_id
        self._tags = tuple(tags)
        self._port = port
        self._protocol = protocol
        self._advertised = ""
        if advertise is not None:
            peer = parse_peer(advertise, port)
            self._advertised, self._port = _numeric(peer.host), peer.port
        self._wanted: _Statement | None = None
        self._said: _Statement | None = None
        self._announcing: list[asyncio.Future[Any]] = []

    def announce(self, rpc: str) -> None:
        """Say that the worker serves llama.cpp's RPC protocol `rpc`, until `withdraw` or `close`."""
        labels = tuple(f"{self._worker_id}-{secrets.token_hex(4)}" for _ in self._tags)
        self._wanted = _Statement(labels, rpc)
        self._wake()

    def withdraw(self) -> None:
        """Say goodbye. Heads keep the connections they have."""
        self._wanted = None
        if self._thread.is_alive():
            self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        said, wanted = self._said, self._wanted
        if said != wanted:
            self._said = wanted
            call(zeroconf, self._say(zeroconf, said, wanted))

    async def _say(self, zeroconf: Zeroconf, said: _Statement | None, wanted: _Statement | None) -> None:
        """In zeroconf's thread."""
        self._hush()
        for info in self._infos(said):
            await zeroconf.async_unregister_service(info)
        for info in self._infos(wanted):
            registered = zeroconf.async_register_service(info, cooperating_responders=True)
            self._announcing.append(asyncio.ensure_future(await registered))

    def _hush(self) -> None:
        """An announcement is sent three times, and zeroconf would send the last one behind a goodbye."""
        for announcing in self._announcing:
            announcing.cancel()
        self._announcing.clear()

    def _finish(self, zeroconf: Zeroconf) -> None:
        self._said = None
        if zeroconf.loop is not None:
            zeroconf.loop.call_soon_threadsafe(self._hush)

    def _infos(self, statement: _Statement | None) -> list[ServiceInfo]:
        if statement is None:
            return []
        own = [str(address.ip) for one in self._interfaces for address in one.addresses]
        addresses = [self._advertised] if self._advertised else own[:MAX_ADDRESSES]
        return [
            ServiceInfo(
                SERVICE,
                f"{label}.{SERVICE}",
                self._port,
                properties={"v": str(self._protocol), "tag": tag, "id": self._worker_id, "rpc": statement.rpc},
                server=f"{label}.local.",  # the machine's own name is nobody's business
                other_ttl=_TTL,
                parsed_addresses=addresses,
            )
            for label, tag in zip(statement.labels, self._tags, strict=True)
        ]


def _numeric(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        raise usage_error(
            f"--advertise wants an address, not {host!r}", "such as --advertise 192.168.1.5:25052"
        ) from None
