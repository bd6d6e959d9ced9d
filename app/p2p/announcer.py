"""Announces a worker by mDNS."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from zeroconf import ServiceInfo, Zeroconf

from app.errors import usage_error
from app.p2p.announcement import Announcement, write
from app.p2p.mdns import MAX_ADDRESSES, SERVICE, TTL, Mdns, call
from app.p2p.peers import parse_peer
from app.p2p.token import Network


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
        networks: Sequence[Network],
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
        self._networks = tuple(networks)
        self._port = port
        self._protocol = protocol
        self._advertised = ""
        if advertise is not None:
            peer = parse_peer(advertise, port)
            self._advertised, self._port = _numeric(peer.host), peer.port
        self._wanted: tuple[Announcement, ...] = ()
        """One for each network."""
        self._said: tuple[Announcement, ...] = ()
        self._announcing: list[asyncio.Future[Any]] = []

    def announce(self, rpc: str) -> None:
        """Say that the worker serves llama.cpp's RPC protocol `rpc`, until `withdraw` or `close`."""
        self._wanted = tuple(
            Announcement(
                f"{self._worker_id}-{secrets.token_hex(4)}".lower(),
                self._worker_id,
                self._port,
                network.tag,
                self._protocol,
                rpc,
            )
            for network in self._networks
        )
        self._wake()

    def withdraw(self) -> None:
        """Say goodbye. Heads keep the connections they have."""
        self._wanted = ()
        if self._thread.is_alive():
            self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        said, wanted = self._said, self._wanted
        if said != wanted:
            self._said = wanted
            call(zeroconf, self._say(zeroconf, said, wanted))

    async def _say(self, zeroconf: Zeroconf, said: Sequence[Announcement], wanted: Sequence[Announcement]) -> None:
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
        self._said = ()
        if zeroconf.loop is not None:
            zeroconf.loop.call_soon_threadsafe(self._hush)

    def _infos(self, announcements: Sequence[Announcement]) -> list[ServiceInfo]:
        """Of one for each network, or of none."""
        own = [str(address.ip) for one in self._interfaces for address in one.addresses]
        addresses = [self._advertised] if self._advertised else own[:MAX_ADDRESSES]
        return [
            ServiceInfo(
                SERVICE,
                f"{announcement.instance}.{SERVICE}",
                announcement.port,
                properties=write(announcement, network),
                server=f"{announcement.instance}.local.",  # the machine's own name is nobody's business
                other_ttl=TTL,
                parsed_addresses=addresses,
            )
            for announcement, network in zip(announcements, self._networks, strict=False)
        ]


def _numeric(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        raise usage_error(
            f"--advertise wants an address, not {host!r}", "such as --advertise 192.168.1.5:25052"
        ) from None
