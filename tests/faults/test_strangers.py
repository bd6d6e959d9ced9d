"""Goal: whoever has no token gets nothing, holds nothing, and is in nobody's way.

Against the frozen worker with the real rpc-server behind it, on loopback.
"""

from __future__ import annotations

import random
import resource
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from app.p2p.channel import ChannelError
from app.p2p.frames import MAX_FRAME
from app.p2p.gate import MAX_MEMBERS, MAX_STRANGERS
from app.p2p.identity import Role, client_context, mint
from app.p2p.link import Address, LinkError, greet
from tests.faults.attacker import SOURCES, attacking
from tests.faults.conftest import Record
from tests.faults.scale import count, judge
from tests.faults.victim import Victim, descriptors, eventually, memory, percentile, threads, victim_on_loopback
from tests.p2p.fake_worker import new_token
from tests.p2p.test_identity import careless
from tests.p2p.test_relay import HELLO

HANG = 30.0
"""Seconds after which a test is taken to hang."""
SEED = 20241123
MIB = 1 << 20
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Idle:
    """What the relay holds when nobody is there."""

    victim: Victim
    memory: int
    descriptors: int
    threads: int

    def wait(self) -> float:
        """Until it holds no more than that; the seconds that took."""
        took = eventually(lambda: threads(self.victim.launcher) <= self.threads, "threads were lost")
        return took + eventually(lambda: descriptors(self.victim.launcher) <= self.descriptors, "descriptors were lost")


@pytest.fixture(scope="module")
def idle(victim: Victim) -> Idle:
    """Measured when it has met each kind of visitor."""
    least = Idle(victim, 0, descriptors(victim.launcher), threads(victim.launcher))
    victim.greets(20)
    for number in range(200):
        say(victim, HELLO, number)
    least.wait()
    return replace(least, memory=memory(victim.launcher))


@pytest.fixture(autouse=True)
def it_stays_well(victim: Victim, idle: Idle) -> Iterator[None]:
    """Each attack leaves a worker that serves, and a server that nobody has reached."""
    reached = victim.reached
    yield
    victim.is_well()
    assert victim.reached == reached, "somebody reached rpc-server"


def dial(victim: Victim, number: int = 0) -> socket.socket:
    """A connection from one of many sources, so that the gate does not take all for one."""
    sock = socket.socket()
    sock.settimeout(HANG)
    sock.bind((f"127.3.{number // 250 % 250}.{1 + number % 250}", 0))
    sock.connect(("127.0.0.1", victim.port))
    return sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the end, however it ends."""
    received = b""
    with suppress(ConnectionError):
        while more := sock.recv(65536):
            received += more
    return received


def say(victim: Victim, speech: bytes, number: int = 0) -> bytes:
    """Say something first, and nothing more; what is answered."""
    with dial(victim, number) as sock:
        with suppress(OSError):
            sock.sendall(speech)
            sock.shutdown(socket.SHUT_WR)
        return rest(sock)


def spread(do: Callable[[int], object], number: int) -> None:
    """`do` for 0 to `number`, a few at a time."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(do, range(number)):
            pass


def test_handshakes_with_a_wrong_token(victim: Victim, record: Record) -> None:
    """Row 1. One that names its own network, and one that names the worker's and trusts its certificate."""
    _, other = new_token()
    honest = victim.head(other)
    forger = client_context(mint(other, Role.HEAD, "forger"))
    forger.load_verify_locations(cadata=victim.authority.certificate.public_bytes(Encoding.DER))
    heads = (honest, replace(honest, context=forger, tag=victim.authority.tag))
    reached, tried = victim.reached, count(60, 10_000)

    def attempt(number: int) -> None:
        with pytest.raises(LinkError):
            greet(Address("127.0.0.1", victim.port), heads[number % 2])

    spread(attempt, tried)
    accepted = victim.reached - reached
    record(1, f"{tried} tried: 0 accepted, {accepted} connections to rpc-server")
    assert accepted == 0


def test_no_client_certificate(victim: Victim, record: Record) -> None:
    """Row 2."""
    context, tried = careless(None), count(20, 1_000)

    def attempt(number: int) -> None:
        with (
            dial(victim, number) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(plain, server_hostname=victim.authority.tag) as tls,
        ):
            tls.sendall(HELLO)
            assert not tls.recv(100)
            raise ConnectionError

    spread(attempt, tried)
    record(2, f"0 of {tried} accepted")


def test_old_tls_http_and_bare_rpc(victim: Victim, record: Record) -> None:
    """Row 3."""
    old = careless(mint(victim.authority, Role.HEAD, "old"))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    tried = count(10, 500)
    for number in range(tried):
        with dial(victim, number) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(plain, server_hostname=victim.authority.tag)
        for speech in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HELLO):
            answer = say(victim, speech, number)
            assert answer[:1] in (b"", b"\x15"), f"more than an alert: {answer!r}"
    record(3, f"0 of {3 * tried} accepted")


def test_silent_connections(victim: Victim, record: Record) -> None:
    """Row 4: far more than there are places, from many sources, for as long as it is measured."""
    tried = count(20, 300)
    undisturbed = victim.greets(tried)
    with attacking("silent", victim.port, 500) as end:
        during = victim.greets(tried)
        made = end()
    undisturbed += victim.greets(tried)
    base, worst = percentile(undisturbed), percentile(during)
    text = (
        f"{tried} of {tried} served, p99 {worst * 1e3:.1f} ms, B {base * 1e3:.1f} ms ({made} silent, {SOURCES} sources)"
    )
    record(4, text)
    judge(worst < 2 * base, text)


def test_a_client_hello_at_a_byte_a_second(victim: Victim, record: Record) -> None:
    """Row 5. Several at once, since it takes its time."""

    def dribble(number: int) -> float:
        with dial(victim, number) as sock:
            began = time.monotonic()
            with suppress(OSError):
                for byte in struct.pack("!BHH", 22, 0x0301, 512) + bytes(100):
                    sock.sendall(bytes([byte]))
                    sock.settimeout(1)
                    with suppress(TimeoutError):
                        if not sock.recv(1):
                            break
            return time.monotonic() - began

    with ThreadPoolExecutor(20) as pool:
        took = max(pool.map(dribble, range(count(3, 20))))
    record(5, f"cut off after {took:.1f} s")
    judge(took <= 5, f"cut off after {took:.1f} s")
    assert took < 60


def first_records(number: int) -> Iterator[bytes]:
    """Noise, and a genuine ClientHello that was damaged, the same every time."""
    chance = random.Random(SEED)
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        careless(None).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a" * 32).do_handshake()
    genuine = outgoing.read()
    for turn in range(number):
        if turn % 4 == 0:
            yield chance.randbytes(chance.randrange(1, 600))
            continue
        damaged = bytearray(genuine)
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            at = chance.randrange(len(damaged))
            match turn % 3:
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    damaged[at:at] = chance.randbytes(chance.randrange(1, 40))
                case _:
                    del damaged[at : at + chance.randrange(1, 20)]
            damaged = damaged or bytearray(b"\x16")
        yield bytes(damaged)


def test_random_and_mutated_first_records(victim: Victim, record: Record) -> None:
    """Row 6."""
    tried = count(300, 100_000)
    speeches = first_records(tried)
    taking = Lock()

    def send_next(number: int) -> None:
        with taking:
            speech = next(speeches)
        say(victim, speech, number)

    spread(send_next, tried)
    tracebacks = victim.log.count("Traceback")
    record(6, f"{tried} sent (seed {SEED}): {tracebacks} tracebacks, the worker serves")
    assert tracebacks == 0


def test_frames_without_end(victim: Victim, idle: Idle, record: Record) -> None:
    """Row 7. A handshake that would go on for ever, a frame that is too long, one that never ends."""
    record_type = b"\x16\x03\x01\x40\x00"
    flood = record_type + b"\x01\x01\xff\xb8\x03\x03" + bytes(16384 - 6) + (record_type + bytes(16384)) * 6
    with dial(victim) as sock:
        with suppress(OSError):
            sock.sendall(flood * 20)
        rest(sock)
    too_long = victim.session().dial()
    too_long.channel.write((MAX_FRAME + 1).to_bytes(4, "big") + bytes(100))
    with pytest.raises((ChannelError, EOFError)), closing(too_long.channel):
        while too_long.channel.read(100, HANG):
            pass
        raise EOFError

    # As many as it serves hold as much as they can: a stranger most of a handshake, a member most of a frame.
    for kind, number in (("stranger", count(8, MAX_STRANGERS)), ("member", count(8, MAX_MEMBERS - 8))):
        held = memory(victim.launcher)
        with ExitStack() as stack:
            for turn in range(number):
                if kind == "stranger":
                    stack.enter_context(dial(victim, turn)).sendall(flood[: 15 * 1024])
                else:
                    talk = victim.session().dial()
                    stack.callback(talk.channel.close)
                    talk.channel.write(MAX_FRAME.to_bytes(4, "big") + b"x" * (MAX_FRAME - 1))
            time.sleep(0.3)
            each = (memory(victim.launcher) - held) / number / 1024
            record(7, f"{kind}: {each:.0f} KiB of the process a connection")
            if kind == "stranger":
                judge(each <= 64, f"a stranger holds {each:.0f} KiB")
            record(7, f"{kind}: cut off after {idle.wait():.1f} s")


def test_one_source_that_floods(victim: Victim, record: Record) -> None:
    """Row 10."""
    tried, failures = count(20, 500), 0
    with attacking("flood", victim.port, 200) as end:
        for _ in range(tried):
            try:
                victim.greet()
            except LinkError:
                failures += 1
        made = end()
    record(10, f"{failures} failures in {tried}, while one source made {made} connections")
    assert failures == 0


def test_aborted_in_mid_handshake(victim: Victim, idle: Idle, record: Record) -> None:
    """Row 11."""
    tried = count(100, 1_000)
    hello = next(speech for speech in first_records(8) if speech[:1] == b"\x16")

    def abort(number: int) -> None:
        with dial(victim, number) as sock:
            sock.sendall(hello[: len(hello) // 2 if number % 2 else None])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    spread(abort, tried)
    victim.greet()  # it waits behind those that are still to be accepted
    idle.wait()
    with ExitStack() as stack:
        held = [stack.enter_context(dial(victim, number)) for number in range(MAX_STRANGERS)]
        time.sleep(0.3)
        for sock in held:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
    record(11, f"{tried} aborted; afterwards {MAX_STRANGERS} of {MAX_STRANGERS} places are free")


def test_everything_is_back_afterwards(victim: Victim, idle: Idle, record: Record) -> None:
    """Row 8. The last of those on this worker."""
    idle.wait()
    grown = (memory(victim.launcher) - idle.memory) / MIB
    record(8, f"memory {grown:+.1f} MB, descriptors as before ({idle.descriptors})")
    judge(grown < 20, f"memory {grown:+.1f} MB")


def test_out_of_file_descriptors(binary: Path, tmp_path: Path, record: Record) -> None:
    """Row 9."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed")
    limited = ["prlimit", "--nofile=64:64"]
    with victim_on_loopback(binary, tmp_path, wrapper=limited) as victim:
        with ExitStack() as stack:
            for number in range(200):
                with suppress(OSError):
                    stack.enter_context(dial(victim, number))
            time.sleep(count(1, 3))
        began = time.monotonic()

        def served() -> bool:
            try:
                victim.greet()
            except LinkError:
                return False
            return True

        eventually(served, "it is never served again")
        took = time.monotonic() - began
        victim.is_well()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64
    record(9, f"served again after {took:.2f} s")
    judge(took <= 5, f"after {took:.2f} s")
