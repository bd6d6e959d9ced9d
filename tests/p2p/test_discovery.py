"""Goal: workers are found by whoever has their token, lies on the wire stay harmless, and mDNS may fail.

Real mDNS: on loopback, and between network namespaces where the machine allows it.
"""

from __future__ import annotations

import gc
import ipaddress
import itertools
import json
import logging
import os
import platform
import queue
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from zeroconf import ServiceInfo
from zeroconf._dns import DNSPointer, DNSText
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from app.errors import ExitCode, WorkerError
from app.p2p import mdns
from app.p2p.announcement import Announcement, write
from app.p2p.announcer import Announcer
from app.p2p.browser import MAX_SIGHTINGS, Browser, Sighting
from app.p2p.interfaces import Interface
from app.p2p.mdns import SERVICE
from app.p2p.token import Network, generate, network, parse
from tests.fuzz.plain import pointer_to
from tests.p2p.fake_worker import eventually

HANG = 30.0
"""Seconds after which a test is taken to hang."""
QUIET = 1.0
"""Seconds in which what must not come would have come: announcements take milliseconds."""
TOKEN = generate()
OURS, OTHER = network(parse(TOKEN)), network(parse(generate()))
TAG = OURS.tag
RUN = secrets.token_hex(4)
"""In every name, so that two runs of these tests on one machine do not hear each other."""
GROUP = ("224.0.0.251", 5353)
RESPONSE = 0x8400


class Watch:
    """A browser on loopback and what it has told."""

    def __init__(self, *networks: Network, interfaces: tuple[str, ...] = ("lo",)) -> None:
        self.events: queue.SimpleQueue[tuple[str, Sighting]] = queue.SimpleQueue()
        self.present: dict[str, Sighting] = {}
        self.most = 0
        self.browser = Browser(networks or (OURS,), self._found, self._gone, interfaces=interfaces)
        self.browser.start()

    def _found(self, sighting: Sighting) -> None:
        self.present[sighting.instance] = sighting
        self.most = max(self.most, len(self.present))
        self.events.put(("found", sighting))

    def _gone(self, sighting: Sighting) -> None:
        del self.present[sighting.instance]
        self.events.put(("gone", sighting))

    def next(self, what: str) -> Sighting:
        event, sighting = self.events.get(timeout=HANG)
        assert event == what
        return sighting

    def wait_for(self, worker_id: str) -> Sighting:
        while True:
            event, sighting = self.events.get(timeout=HANG)
            if event == "found" and sighting.worker_id == worker_id:
                return sighting

    def hears_nothing(self) -> bool:
        try:
            self.events.get(timeout=QUIET)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.browser.close()


def announcer(worker_id: str = "box-1", *networks: Network, **more: Any) -> Announcer:
    return Announcer(worker_id, networks or (OURS,), port=25052, protocol=1, interfaces=("lo",), **more)


class Wire:
    """Says anything on loopback's multicast, and hears all of it."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            self.sock.setsockopt(socket.SOL_SOCKET, option, 1)
        self.sock.bind(("", GROUP[1]))
        loopback = socket.inet_aton("127.0.0.1")
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + loopback)
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        self.sock.settimeout(HANG)

    def say(
        self, *infos: ServiceInfo, records: tuple[str, ...] = ("ptr", "srv", "txt", "a"), ttl: int | None = None
    ) -> None:
        out = DNSOutgoing(RESPONSE)
        for info in infos:
            for record in self._records(info, ttl, records):
                out.add_answer_at_time(record, 0)
        for packet in out.packets():
            self.sock.sendto(packet, GROUP)

    @staticmethod
    def _records(info: ServiceInfo, ttl: int | None, kinds: tuple[str, ...]) -> list[Any]:
        made: dict[str, list[Any]] = {
            "ptr": [info.dns_pointer(ttl)],
            "srv": [info.dns_service(ttl)],
            "txt": [info.dns_text(ttl)],
            "a": list(info.dns_addresses(ttl)),
        }
        return [record for kind in kinds for record in made[kind]]

    def hear(self) -> tuple[bytes, DNSIncoming]:
        data = self.sock.recv(9000)
        return data, DNSIncoming(data)

    def wait_for_question(self, name: str) -> None:
        while True:
            _, message = self.hear()
            if message.is_query() and any(question.name == name for question in message.questions):
                return

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with closing(Wire()) as wire:
        yield wire


@pytest.fixture
def watch(wire: Wire) -> Iterator[Watch]:
    """One that has begun to listen."""
    with closing(Watch()) as watch:
        test = invented("test")
        while not watch.present:
            wire.say(test)
            time.sleep(0.05)
        watch.next("found")
        wire.say(test, ttl=0)
        watch.next("gone")
        yield watch


def invented(worker_id: str, *addresses: str, label: str = "", port: int = 25052, **text: str | bytes) -> ServiceInfo:
    """What a member of our network says; `text` is put into TXT afterwards, as by somebody else."""
    label = label or f"{worker_id}-{RUN}"
    said = Announcement(label, worker_id, port, TAG, 1, "7.0.0")
    info = ServiceInfo(
        SERVICE,
        f"x.{SERVICE}",
        port,
        properties=write(said, OURS) | text,
        server=f"{label}.local.",
        parsed_addresses=list(addresses or ("127.0.0.1",)),
    )
    info.name = f"{label}.{SERVICE}"  # this way anything goes
    return info


def test_a_worker_comes_goes_and_comes_again(watch: Watch) -> None:
    with closing(announcer()) as worker:
        worker.announce("7.0.0")
        first = watch.next("found")
        assert first == Sighting(first.instance, "box-1", 25052, TAG, 1, "7.0.0", ("127.0.0.1", "::1"))
        worker.withdraw()
        assert watch.next("gone") == first
        worker.announce("7.1.0")
        again = watch.next("found")
        assert (again.worker_id, again.rpc) == ("box-1", "7.1.0")
    assert watch.next("gone") == again  # the goodbye at the end


def test_coming_and_going_at_once_ends_in_what_was_said_last(watch: Watch) -> None:
    """Within a second, in which receivers take equal packets for one, and a goodbye is still repeated."""
    with closing(announcer()) as worker:
        for number in range(10):
            worker.announce(f"7.0.{number}")
            time.sleep(0.03)
            worker.withdraw()
            time.sleep(0.03)
        worker.announce("8.0.0")
        while watch.wait_for("box-1").rpc != "8.0.0":
            pass
        time.sleep(QUIET)
        assert [sighting.rpc for sighting in watch.present.values()] == ["8.0.0"]


def test_no_announcement_follows_its_goodbye(wire: Wire) -> None:
    """Both are sent several times. zeroconf forgives the wrong order for a while, others do not."""
    goodbyes: set[str] = set()
    wire.sock.settimeout(QUIET)
    with closing(announcer()) as worker:
        worker.announce("7.0.0")
        while not goodbyes:
            for record in wire.hear()[1].answers():
                if isinstance(record, DNSPointer):
                    worker.withdraw()
                    goodbyes |= {record.alias} if not record.ttl else set()
        with pytest.raises(TimeoutError):
            while True:
                for record in wire.hear()[1].answers():
                    assert not (isinstance(record, DNSPointer) and record.ttl and record.alias in goodbyes)


def test_a_head_that_comes_later_finds_who_is_there() -> None:
    with closing(announcer()) as worker:
        worker.announce("7.0.0")
        time.sleep(QUIET)
        with closing(Watch()) as late:
            assert late.next("found").worker_id == "box-1"


def test_another_network_is_not_seen_and_a_worker_of_two_is_seen_in_both(watch: Watch) -> None:
    with closing(announcer("stranger", OTHER)) as stranger, closing(announcer("both", OURS, OTHER)) as both:
        stranger.announce("7.0.0")
        time.sleep(0.1)
        both.announce("7.0.0")
        assert watch.next("found").worker_id == "both"
        assert watch.hears_nothing()
        with closing(Watch(OTHER)) as other:
            assert {other.next("found").worker_id, other.next("found").worker_id} == {"stranger", "both"}


def test_two_workers_of_one_id_are_both_found(watch: Watch) -> None:
    """Two machines of a cloned image."""
    with closing(announcer()) as one, closing(announcer(advertise="127.0.0.9:7")) as two:
        one.announce("7.0.0")
        two.announce("7.0.0")
        seen = [watch.next("found"), watch.next("found")]
        assert watch.hears_nothing()  # and they do not take each other's place
    assert {sighting.worker_id for sighting in seen} == {"box-1"}
    assert {(sighting.addresses, sighting.port) for sighting in seen} == {
        (("127.0.0.1", "::1"), 25052),
        (("127.0.0.9",), 7),
    }


def test_an_announcement_says_four_things_their_proof_and_not_the_machine_s_name(wire: Wire) -> None:
    heard = b""
    texts: set[bytes] = set()
    with closing(announcer()) as worker:
        worker.announce("7.0.0")
        while not texts:
            data, message = wire.hear()
            heard += data
            texts |= {
                answer.text
                for answer in message.answers()
                if isinstance(answer, DNSText) and TAG.encode() in answer.text
            }
    info = ServiceInfo(SERVICE, f"x.{SERVICE}", 1, properties=texts.pop())
    proof = info.properties.pop(b"mac")
    assert proof is not None
    assert len(proof) == 32
    assert info.properties == {b"v": b"1", b"tag": TAG.encode(), b"id": b"box-1", b"rpc": b"7.0.0"}
    assert platform.node().encode().lower() not in heard.lower()


def test_only_addresses_on_our_links_are_handed_out(watch: Watch, wire: Wire) -> None:
    wire.say(invented("far", "8.8.8.8", "10.1.2.3", "2001:db8::1", "169.254.1.1", "::ffff:127.0.0.1", "fe80::1"))
    wire.say(invented("odd", "0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "::"))
    wire.say(invented("mixed", "192.0.2.7", "127.0.0.5"))
    assert watch.next("found").addresses == ("127.0.0.5",)
    assert watch.hears_nothing()


BAD = [
    invented("", label="no-id"),
    invented("a b"),
    invented("x" * 49),
    invented("bad-tag", tag=TAG[:-1]),
    invented("bad-tag-2", tag=b"\xff" * 16),
    invented("bad-port", port=0),
    invented("bad-rpc", rpc="\x1b[2J"),
    invented("bad-rpc-2", rpc="7.0.0" * 40),
    invented("bad-version", v="-1"),
    invented("no-version", v="\N{ARABIC-INDIC DIGIT ONE}"),
    invented("no-proof", mac=""),
    invented("no-proof-2", mac="0" * 32),
    invented("another's-proof", mac=write(Announcement("box-1", "box-1", 25052, TAG, 1, "7.0.0"), OURS)["mac"]),
    invented("label", label="\x1b[31mred"),
    invented("label-2", label="a.b"),
]


def test_what_is_no_proper_announcement_is_passed_over(
    watch: Watch, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    for info in BAD:
        wire.say(info)
    wire.sock.sendto(os.urandom(500), GROUP)
    wire.sock.sendto(struct.pack("!6H", 0, RESPONSE, 0, 65535, 0, 0) + b"\xc0\x0c" * 200, GROUP)
    wire.say(invented("good"))
    assert watch.next("found").worker_id == "good"
    assert watch.hears_nothing()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_a_member_invents_is_not_all_stored_and_does_not_hide_a_genuine_worker(watch: Watch, wire: Wire) -> None:
    numbers = itertools.count(1)

    def invent(count: int) -> None:
        for _ in range(0, count, 8):
            wire.say(*(invented(f"no-{number}", port=number) for number in itertools.islice(numbers, 8)))
            time.sleep(0.005)  # as fast as the kernel's buffers let it through

    while watch.most < MAX_SIGHTINGS:
        invent(64)
    invent(2 * MAX_SIGHTINGS)
    with closing(announcer("genuine")) as worker:
        worker.announce("7.0.0")
        assert watch.wait_for("genuine").port == 25052
        assert watch.most <= MAX_SIGHTINGS


def test_a_flood_of_a_stranger_is_no_sighting_and_hides_no_genuine_worker(
    watch: Watch, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Of records that outlive the genuine ones, so many that zeroconf forgets these as soon as it hears them."""
    numbers = itertools.count()
    ended = threading.Event()

    def flood() -> None:
        while not ended.wait(0.005):  # as fast as the kernel's buffers let it through
            forged = [invented(f"no-{one}", mac=f"{one:032x}") for one in itertools.islice(numbers, 8)]
            wire.say(*forged, ttl=4500)

    stranger = threading.Thread(target=flood)
    stranger.start()
    try:
        while next(numbers) < 5000:
            time.sleep(0.1)
        with closing(announcer("genuine")) as worker:
            worker.announce("7.0.0")
            assert watch.wait_for("genuine").port == 25052
    finally:
        ended.set()
        stranger.join(HANG)
    assert watch.most == 1
    zeroconf = watch.browser._zeroconf
    assert zeroconf is not None
    eventually(lambda: len(zeroconf.cache.names()) < 100)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_nobody_can_keep_a_head_from_asking(watch: Watch, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """By what zeroconf cannot write: of a label that is no UTF-8 it makes three times as many bytes."""
    wire.sock.sendto(pointer_to(b"\xff" * 40), GROUP)
    for _ in range(2):
        wire.wait_for_question(SERVICE)
    wire.say(invented("good"))
    assert watch.wait_for("good").worker_id == "good"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_forgery_of_a_genuine_announcement_takes_nothing_back(watch: Watch, wire: Wire) -> None:
    wire.say(invented("victim"))
    genuine = watch.next("found")
    for forged in (
        invented("victim", mac="0" * 32),
        invented("victim", rpc="9.9.9"),
        invented("victim", label=f"VICTIM-{RUN.upper()}", tag="ff" * 16),
    ):
        wire.say(forged)
    assert watch.hears_nothing()
    assert watch.present == {genuine.instance: genuine}


def test_a_genuine_announcement_in_other_letters_is_the_same(watch: Watch, wire: Wire) -> None:
    """Else whoever hears one could make thousands of it."""
    wire.say(invented("victim"))
    watch.next("found")
    for label in (f"VICTIM-{RUN}", f"Victim-{RUN}", f"vicTIM-{RUN.upper()}"):
        again = invented("victim")
        again.name = f"{label}.{SERVICE}"
        wire.say(again)
    assert watch.hears_nothing()
    assert len(watch.present) == 1


def test_a_forged_goodbye_takes_the_hint_and_nothing_else(watch: Watch, wire: Wire) -> None:
    info = invented("victim")
    wire.say(info)
    sighting = watch.next("found")
    wire.say(info, ttl=0)
    assert watch.next("gone") == sighting
    time.sleep(QUIET)
    wire.say(info)
    assert watch.next("found") == sighting


@pytest.mark.parametrize("heard", [("ptr",), ("ptr", "srv"), ("ptr", "txt"), ("srv", "txt")], ids="-".join)
def test_an_incomplete_announcement_is_asked_about(watch: Watch, wire: Wire, heard: tuple[str, ...]) -> None:
    """Long answers are sent in several packets."""
    info = invented("terse")
    wire.say(info, records=heard)
    wire.wait_for_question(info.name)
    wire.say(info, records=("srv", "txt", "a"))
    assert watch.next("found").worker_id == "terse"


@pytest.mark.parametrize("order", list(itertools.permutations(("srv", "txt", "a"))), ids="-".join)
def test_the_parts_of_an_announcement_may_come_one_by_one(watch: Watch, wire: Wire, order: tuple[str, ...]) -> None:
    """Nobody answers what is asked meanwhile. Said again, for what had come may just have been forgotten."""
    info = invented("parts")

    def is_found() -> bool:
        for part in order:
            wire.say(info, records=(part,))
        time.sleep(0.1)
        return bool(watch.present)

    eventually(is_found)


def test_other_machines_are_not_asked_for_workers(watch: Watch, wire: Wire) -> None:
    info = invented("printer")
    wire.say(info, records=("a",))
    out = DNSOutgoing(RESPONSE)
    out.add_answer_at_time(DNSPointer("9.0.0.127.in-addr.arpa.", 12, 1, 4500, f"printer-{RUN}.local."), 0)
    wire.sock.sendto(out.packets()[0], GROUP)
    wire.say(invented("good"))
    assert watch.next("found").worker_id == "good"
    wire.sock.settimeout(QUIET)
    with pytest.raises(TimeoutError):
        wire.wait_for_question(info.name)


def test_a_worker_of_two_networks_with_many_addresses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it answers does not fit into one packet."""
    many = tuple(ipaddress.ip_interface(f"127.0.{number}.1/8") for number in range(30))
    monkeypatch.setattr(mdns, "suitable", lambda _: (Interface("lo", 1, many),))
    with closing(announcer("both" * 12, OTHER, OURS)) as both:
        both.announce("7.0.0")
        time.sleep(QUIET)  # until its own announcements are over
        for network in (OURS, OTHER):
            with closing(Watch(network)) as late:
                assert len(late.wait_for("both" * 12).addresses) == mdns.MAX_ADDRESSES


def test_a_worker_that_moves_is_told_once_more(watch: Watch, wire: Wire) -> None:
    wire.say(invented("mover", "127.0.0.2"))
    first = watch.next("found")
    wire.say(invented("mover", "127.0.0.3"))
    moved = watch.next("found")
    assert moved.instance == first.instance
    assert moved.addresses[0] == "127.0.0.3"


def test_fewer_addresses_are_no_news(watch: Watch, wire: Wire) -> None:
    """Over IPv4 link-local ones are not heard, over IPv6 they are."""
    wire.say(invented("box", "127.0.0.2", "127.0.0.3"))
    both = watch.next("found").addresses
    wire.say(invented("box", "127.0.0.3"))
    assert watch.hears_nothing()
    assert [sighting.addresses for sighting in watch.present.values()] == [both]


def test_switched_off_it_does_nothing(watch: Watch) -> None:
    before = threading.active_count()
    with (
        closing(announcer(enabled=False)) as worker,
        closing(Browser([OURS], lambda _: None, lambda _: None, enabled=False)) as browser,
    ):
        browser.start()
        worker.announce("7.0.0")
        worker.withdraw()
        worker.announce("7.0.0")
        assert threading.active_count() == before
        assert watch.hears_nothing()


def test_an_advertised_address_must_be_one() -> None:
    for bad in ("box.example", "box.example:1", "1.2.3.4:x", ""):
        with pytest.raises(WorkerError) as caught:
            announcer(advertise=bad)
        assert caught.value.code == ExitCode.USAGE


def test_nothing_is_left_over() -> None:
    def run() -> None:
        with closing(Watch()) as watch, closing(announcer()) as worker:
            worker.announce("7.0.0")
            watch.next("found")

    run()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        run()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


# Between namespaces: each side is a process of its own, as on two machines.

IP = shutil.which("ip") or "/sbin/ip"
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(IP).exists(), reason="needs root and iproute2: it makes network namespaces"
)

WORKER = """
import sys
from app.p2p.announcer import Announcer
from app.p2p.token import network, parse
worker = Announcer("box-1", [network(parse(sys.argv[1]))], port=25052, protocol=1, interfaces=sys.argv[2:])
for line in sys.stdin:
    worker.announce("7.0.0") if line == "announce\\n" else worker.withdraw()
worker.close()
"""

HEAD = """
import json, logging, sys
from dataclasses import asdict
from app.p2p.browser import Browser
from app.p2p.token import network, parse
say = lambda what, this: print(json.dumps([what, this]), flush=True)
class Log(logging.Handler):
    def emit(self, record):
        say(record.levelname, record.getMessage())
logging.basicConfig(level=logging.INFO, handlers=[Log()])
found, gone = (lambda s: say("found", asdict(s))), (lambda s: say("gone", asdict(s)))
browser = Browser([network(parse(sys.argv[1]))], found, gone, interfaces=sys.argv[2:])
browser.start()
sys.stdin.read()
browser.close()
"""

LISTEN = """
import socket
listener = socket.create_server(("::", 25052), family=socket.AF_INET6, dualstack_ipv6=True)
print(1, flush=True)
listener.accept()
print(2, flush=True)
"""

DIAL = """
import socket, sys
socket.create_connection((sys.argv[1], 25052), 10)
"""

TAKE_PORT = """
import socket, sys
taken = socket.socket(type=socket.SOCK_DGRAM)
taken.bind(("", 5353))
print(1, flush=True)
sys.stdin.read()
"""

INTERFACES = """
import json, sys
from app.p2p.interfaces import suitable
print(json.dumps([one.name for one in suitable(sys.argv[1:])]))
"""


class Namespace:
    """A machine without any network yet."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = f"worker-test-{os.getpid()}-{name}"
        self.stack = stack
        subprocess.run([IP, "netns", "add", self.name], check=True)
        stack.callback(subprocess.run, [IP, "netns", "del", self.name], check=True)
        self.ip("link set lo up")

    def ip(self, command: str) -> None:
        subprocess.run([IP, "-n", self.name, *command.split()], check=True, capture_output=True)

    def run(self, code: str, *arguments: str) -> Side:
        return Side(self, code, *arguments)


class Side:
    """A process in a namespace, and the JSON lines that it prints."""

    def __init__(self, namespace: Namespace, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [IP, "netns", "exec", namespace.name, sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        namespace.stack.callback(self.close)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def next(self) -> Any:
        return self.lines.get(timeout=HANG)

    def wait_for(self, what: str, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        while True:
            event, this = self.next()
            if event == what and wanted(this):
                return this

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(HANG)
            finally:
                self.process.kill()
                self.reader.join(HANG)


@dataclass(frozen=True)
class Lan:
    """Two machines with one cable; its ends are called veth0."""

    one: Namespace
    two: Namespace

    def plug(self, *addresses: str) -> None:
        self.one.ip(f"link add veth0 type veth peer name veth0 netns {self.two.name}")
        for machine in (self.one, self.two):
            machine.ip("link set veth0 up")
        for machine, address in zip((self.one, self.two), addresses, strict=False):
            machine.ip(f"addr add {address} dev veth0")


@pytest.fixture
def lan() -> Iterator[Lan]:
    with ExitStack() as stack:
        yield Lan(Namespace("1", stack), Namespace("2", stack))


@needs_namespaces
@pytest.mark.parametrize("family", ["both", "link-local IPv6 alone"])
def test_over_a_cable_and_what_is_found_can_be_dialled(lan: Lan, family: str) -> None:
    lan.plug(*(["10.77.0.1/24", "10.77.0.2/24"] if family == "both" else []))
    worker, head = lan.one.run(WORKER, TOKEN), lan.two.run(HEAD, TOKEN)
    worker.say("announce")
    link_local = head.wait_for("found", lambda this: "%" in this["addresses"][-1])["addresses"]
    assert link_local[:-1] == (["10.77.0.1"] if family == "both" else [])
    assert link_local[-1].startswith("fe80::")
    assert link_local[-1].endswith("%veth0")
    for address in link_local:
        listener = lan.one.run(LISTEN)
        assert listener.next() == 1
        lan.two.run(DIAL, address)
        assert listener.next() == 2
    worker.close()
    assert head.wait_for("gone")["worker_id"] == "box-1"


@needs_namespaces
@pytest.mark.parametrize("side", ["the worker's", "the head's"])
def test_a_link_that_goes_down_and_comes_back_with_a_new_address(lan: Lan, side: str) -> None:
    lan.plug("10.77.0.1/24", "10.77.0.2/24")
    worker, head = lan.one.run(WORKER, TOKEN), lan.two.run(HEAD, TOKEN)
    worker.say("announce")
    head.wait_for("found", lambda this: "10.77.0.1" in this["addresses"])
    moved = lan.one if side == "the worker's" else lan.two
    moved.ip("link set veth0 down")
    time.sleep(3)  # until it has been noticed
    moved.ip("addr flush dev veth0")
    # Into another subnet, as from one DHCP server to the next.
    lan.one.ip("addr add 10.78.0.1/24 dev veth0")
    lan.two.ip("addr add 10.78.0.2/24 dev veth0")
    moved.ip("link set veth0 up")
    head.wait_for("found", lambda this: "10.78.0.1" in this["addresses"])


@needs_namespaces
def test_a_cable_that_is_replaced(lan: Lan) -> None:
    """The interface goes and another one of the same name and address comes, sooner than anybody looks."""
    lan.plug("10.77.0.1/24", "10.77.0.2/24")
    worker, head = lan.one.run(WORKER, TOKEN), lan.two.run(HEAD, TOKEN)
    worker.say("announce")
    first = head.wait_for("found")["instance"]
    lan.one.ip("link del veth0")
    lan.plug("10.77.0.1/24", "10.77.0.2/24")
    time.sleep(5)
    worker.say("announce")
    again = head.wait_for("found", lambda this: this["instance"] != first)
    assert "10.77.0.1" in again["addresses"]


@needs_namespaces
def test_no_network_is_a_warning_and_no_end(lan: Lan) -> None:
    worker, head = lan.one.run(WORKER, TOKEN), lan.two.run(HEAD, TOKEN)
    worker.say("announce")
    event, text = head.next()
    assert event == "WARNING"
    assert "no usable network interface" in text
    time.sleep(5)
    lan.plug("10.77.0.1/24", "10.77.0.2/24")
    event, text = head.next()  # and not the warning again
    assert (event, text) == ("INFO", "mDNS works now")
    head.wait_for("found")


@needs_namespaces
def test_a_taken_port_is_a_warning_and_no_end(lan: Lan) -> None:
    lan.plug("10.77.0.1/24", "10.77.0.2/24")
    other = lan.two.run(TAKE_PORT)
    assert other.next() == 1
    head = lan.two.run(HEAD, TOKEN)
    event, text = head.next()
    assert event == "WARNING"
    assert "udp port 5353: address already in use" in text
    time.sleep(5)
    other.close()
    assert head.next() == ["INFO", "mDNS works now"]


@needs_namespaces
def test_which_interfaces_count(lan: Lan) -> None:
    machine = lan.one

    def counting(*named: str) -> Any:
        return machine.run(INTERFACES, *named).next()

    assert counting() == []
    assert counting("lo") == ["lo"]
    # All are veth pairs, whatever their names: every kernel with namespaces has those.
    machine.ip("link add veth7 type veth peer name veth8")
    machine.ip("link add docker0 type veth peer name br-12ab")
    machine.ip("link add eth0 type veth peer name virbr0")
    for number, name in enumerate(("veth7", "veth8", "docker0", "br-12ab", "virbr0")):
        machine.ip(f"addr add 10.77.{number}.1/24 dev {name}")
        machine.ip(f"link set {name} up")
    assert set(counting()) == {"veth7", "veth8"}  # better than nothing
    assert set(counting("docker0", "veth7")) == {"docker0", "veth7"}
    machine.ip("link set eth0 up")
    machine.ip("addr add 10.77.8.1/24 dev eth0")
    machine.ip("addr add 10.77.9.1/24 dev eth0 label eth0:1")
    assert counting() == ["eth0"]
    machine.ip("link set virbr0 down")  # the other end: no carrier
    assert set(counting()) == {"veth7", "veth8"}
    machine.ip("link set virbr0 up")
    machine.ip("link set eth0 multicast off")
    assert set(counting()) == {"veth7", "veth8"}
    assert counting("eth0") == ["eth0"]
    machine.ip("link set eth0 down")
    assert counting("eth0") == []
