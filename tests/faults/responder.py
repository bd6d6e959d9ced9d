"""Says on a link what no worker said: `python -m tests.faults.responder crowd|invent|forge TOKEN COUNT ADDRESS`.

`crowd` is COUNT workers in one process: real TLS on a port each, and an answer to every question on mDNS.
`invent` announces, as a member could, COUNT workers that are not there, a third of them off this link, and says when
it is through. `forge` does it as a stranger, who has heard the tag and cannot prove a word.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace

from zeroconf import ServiceInfo
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from app.p2p.announcement import Announcement, write
from app.p2p.identity import authority
from app.p2p.mdns import SERVICE
from app.p2p.token import Network, network, parse
from tests.p2p.fake_worker import FakeWorker

GROUP = ("224.0.0.251", 5353)
RESPONSE = 0x8400
TOGETHER = 8
"""Announcements in one packet, as many as fit."""


def announcement(network: Network, worker_id: str, address: str, port: int) -> ServiceInfo:
    """What a worker of that id would say."""
    said = Announcement(worker_id, worker_id, port, network.tag, 1, "7.0.0")
    return ServiceInfo(
        SERVICE,
        f"{worker_id}.{SERVICE}",
        port,
        properties=write(said, network),
        server=f"{worker_id}.local.",
        parsed_addresses=[address],
    )


def wire(address: str) -> socket.socket:
    """A socket that hears and says on the link of `address`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind(("", GROUP[1]))
    here = socket.inet_aton(address)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + here)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
    return sock


def say(sock: socket.socket, infos: list[ServiceInfo]) -> None:
    """Announce them all."""
    for start in range(0, len(infos), TOGETHER):
        out = DNSOutgoing(RESPONSE)
        for info in infos[start : start + TOGETHER]:
            for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
                out.add_answer_at_time(record, 0)
        for packet in out.packets():
            sock.sendto(packet, GROUP)
        time.sleep(0.001)  # as fast as the kernel's buffers let it through


def crowd(token: str, count: int, address: str) -> None:
    """Be so many workers."""
    ours = network(parse(token))
    workers = [FakeWorker(authority(ours), f"box-{number}", host=address) for number in range(count)]
    infos = [announcement(ours, f"box-{number}", address, worker.port) for number, worker in enumerate(workers)]
    sock = wire(address)
    print("on", flush=True)
    sock.settimeout(1)
    while True:
        with suppress(TimeoutError):
            if not DNSIncoming(sock.recv(9000)).is_query():
                continue
            say(sock, infos)


def invent(ours: Network, count: int, address: str) -> None:
    """Announce so many that are not there."""
    sock = wire(address)
    print("on", flush=True)
    time.sleep(2)  # until who was started with us listens
    places = (lambda n: f"10.77.0.{100 + n % 100}", lambda n: address, lambda n: f"192.0.2.{1 + n % 250}")
    for start in range(0, count, TOGETHER):
        numbers = range(start, min(start + TOGETHER, count))
        say(sock, [announcement(ours, f"no-{n}", places[n % 3](n), 1024 + n % 60_000) for n in numbers])
    print("done", flush=True)


def stranger(token: str) -> Network:
    """What somebody knows of its network who has only listened: the tag."""
    return replace(network(parse(token)), ca_seed=bytes(32), announcement_key=bytes(32))


if __name__ == "__main__":
    _, what, token, number, here = sys.argv
    if what == "crowd":
        crowd(token, int(number), here)
    else:
        invent(network(parse(token)) if what == "invent" else stranger(token), int(number), here)
