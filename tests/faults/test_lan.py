"""Goal: whatever is said, missing or changed on the link, workers are found, and idleness is quiet.

Frozen workers and heads, each in a network namespace of its own.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.faults.conftest import Record
from tests.faults.scale import FULL, count, judge
from tests.faults.victim import descendants, eventually, memory, processor_time
from tests.live.lan import Host, lan, missing
from tests.live.test_p2p import NAMED, Cluster, Program

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

SYN_SENT = "02"
MIB = 1 << 20


@contextmanager
def saying(host: Host, what: str, token: str, number: int) -> Iterator[subprocess.Popen[str]]:
    """A responder on that machine that has begun."""
    words: list[str | Path] = [sys.executable, "-m", "tests.faults.responder", what, token, str(number), host.address]
    process = subprocess.Popen(host.command(words), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def dials(pid: int) -> list[str]:
    """The IPv4 addresses that the namespace of `pid` is dialling at this moment.

    What stands in the table twice: it is read in pieces, and dials come and go meanwhile.
    """
    tables = [Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:] for _ in range(2)]
    first, second = ({tuple(line.split()[1:4]) for line in table} for table in tables)
    return [
        socket.inet_ntoa(struct.pack("=I", int(remote.partition(":")[0], 16)))
        for _, remote, state in first & second
        if state == SYN_SENT
    ]


def watched(head: Program, inventor: subprocess.Popen[str], seconds: float) -> tuple[int, int, int]:
    """Until the inventor is through, and for some seconds at least: the most dials at once, the dials seen, and
    those of other links.
    """
    assert inventor.stdout is not None
    most, seen, off_link = 0, 0, 0
    through = threading.Thread(target=inventor.stdout.readline)
    through.start()
    until = time.monotonic() + seconds
    while through.is_alive() or time.monotonic() < until:
        now = dials(head.process.pid)
        most, seen = max(most, len(now)), seen + len(now)
        off_link += sum(not address.startswith("10.77.0.") for address in now)
        time.sleep(0.02)
    return most, seen, off_link


def test_invented_announcements(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 42: of a member, who can prove them. The dials are bounded."""
    invented = count(200, 10_000)
    with (
        cluster.run(hosts[3], "connect", "--timeout", "600") as head,
        saying(hosts[1], "invent", cluster.token, invented) as inventor,
    ):
        most, seen, off_link = watched(head, inventor, count(3, 20))
    record(42, f"{invented} of a member: at most {most} dials at once, {off_link} off-link")
    assert seen > 0, "nothing was dialled: this test could not fail"
    assert most <= 8
    assert off_link == 0


def test_forged_announcements(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 42: of a stranger, who cannot. They lead nowhere, and the genuine worker is found during them and after."""
    invented = count(200, 10_000)
    with (
        cluster.run(hosts[3], "connect", "--workers", "2", "--timeout", "600") as head,
        saying(hosts[1], "forge", cluster.token, invented) as inventor,
        cluster.worker(hosts[0]),
    ):
        _, seen, _ = watched(head, inventor, count(3, 20))
        with cluster.worker(hosts[2]):
            asked = time.monotonic()
            assert len(head.stdout_line().split(",")) == 2
            took = time.monotonic() - asked
    record(42, f"{invented} of a stranger: {seen} dials; a later worker found {took:.1f} s after it is ready")
    judge(took <= 10, f"{took:.1f} s")


def test_a_forged_goodbye(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 43: with the genuine names, heard on the wire."""
    script = """
import sys
from tests.faults.responder import GROUP, RESPONSE, wire
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing
sock = wire(sys.argv[1])
print("on", flush=True)
gone = 0
while gone < int(sys.argv[2]):
    message = DNSIncoming(sock.recv(9000))
    if message.is_query() or not any(record.ttl for record in message.answers()):
        continue
    out = DNSOutgoing(RESPONSE)
    for record in message.answers():
        record.ttl = 0
        out.add_answer_at_time(record, 0)
    for packet in out.packets():
        sock.sendto(packet, GROUP)
    gone += 1
    print(gone, flush=True)
"""
    forged = count(2, 20)
    forger = subprocess.Popen(
        hosts[2].command([sys.executable, "-c", script, hosts[2].address, str(forged)]),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert forger.stdout is not None
        assert forger.stdout.readline() == "on\n"
        with cluster.worker(hosts[0]), cluster.run(hosts[3], "connect") as head:
            port = int(head.stdout_line().rpartition(":")[2])
            hold = (
                "import socket, sys; from tests.live.support import _HELLO\n"
                f"sock = socket.create_connection(('127.0.0.1', {port})); print('held', flush=True)\n"
                "sys.stdin.readline(); sock.sendall(_HELLO); print(len(sock.recv(100)))\n"
            )
            client = subprocess.Popen(
                hosts[3].command([sys.executable, "-c", hold]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert client.stdout is not None
            assert client.stdout.readline() == "held\n"
            for number in range(1, forged + 1):
                cluster.finish(hosts[4], "list", "--timeout", "1")  # asks, so that the worker answers
                assert forger.stdout.readline() == f"{number}\n"
            out, _ = client.communicate("\n", timeout=60)
            assert int(out) > 0, "the tunnel died"
            assert "lost" not in head.log
    finally:
        forger.kill()
        forger.communicate()
    record(43, f"{forged} forged: 0 tunnels dropped")


def test_a_new_address(cluster: Cluster, record: Record) -> None:
    """Row 45: the worker's interface goes down and comes up elsewhere; the tunnel's port leads there."""
    slowest, turns = 0.0, count(1, 3)
    with lan(2, "f") as (one, two), cluster.worker(one), cluster.run(two, "connect") as head:
        port = int(head.stdout_line().rpartition(":")[2])
        for turn in range(turns):
            _ip(one, "link", "set", "eth0", "down")
            _ip(one, "addr", "flush", "dev", "eth0")
            time.sleep(3)
            _ip(one, "addr", "add", f"10.77.0.{50 + turn}/24", "dev", "eth0")
            _ip(one, "link", "set", "eth0", "up")
            up = time.monotonic()
            subprocess.run(two.command([sys.executable, "-c", UNTIL_SERVED, str(port)]), check=True)
            slowest = max(slowest, time.monotonic() - up)
    record(45, f"served again {slowest:.1f} s after the interface was up, {turns} of {turns}")
    judge(slowest <= 10, f"{slowest:.1f} s")


UNTIL_SERVED = """
import sys, time
from tests.live.support import hello
ends = time.monotonic() + 90
while time.monotonic() < ends:
    try:
        if hello(int(sys.argv[1])):
            sys.exit()
    except OSError:
        pass
    time.sleep(0.1)
sys.exit("never served again")
"""


def _ip(host: Host, *words: str) -> None:
    subprocess.run(["ip", "-n", host.namespace, *words], check=True, capture_output=True)


@pytest.mark.parametrize("trouble", ["the port is taken", "no multicast", "no network"])
def test_without_mdns(cluster: Cluster, record: Record, trouble: str) -> None:
    """Row 46: a static peer serves; without any network its own machine is one."""
    with lan(2, "f") as (one, two):
        blocker = None
        worker_at, head_at, peer = one, two, one.address
        if trouble == "the port is taken":
            script = "import socket, time; s = socket.socket(type=2); s.bind(('', 5353)); time.sleep(99)"
            blocker = [subprocess.Popen(host.command([sys.executable, "-c", script])) for host in (worker_at, head_at)]
            time.sleep(0.5)
        elif trouble == "no multicast":
            for host in (one, two):
                _ip(host, "link", "set", "eth0", "multicast", "off")
        else:
            _ip(one, "link", "set", "eth0", "down")
            head_at, peer = one, "127.0.0.1"
        try:
            with cluster.worker(worker_at) as worker:
                told = cluster.finish(head_at, "connect", "--peer", peer, "--", "true")
                assert told.returncode == 0, told.stderr
                if trouble != "no multicast":
                    worker.says("WARN|warn|mDNS|no usable")
        finally:
            for process in blocker or ():
                process.kill()
                process.wait()
    record(46, f"{trouble}: warned, static peers work")


def test_link_local_ipv6_alone(cluster: Cluster, record: Record) -> None:
    """Row 47."""
    with lan(2, "f") as (one, two):
        for host in (one, two):
            _ip(host, "addr", "flush", "dev", "eth0", "scope", "global")
            eventually(partial(_has_settled, host))
        tried = count(1, 10)
        with cluster.worker(one):
            for _ in range(tried):
                told = cluster.finish(two, "connect", "--", "true")
                assert told.returncode == 0, told.stderr
                assert "fe80::" in told.stderr, "another address was used"
    record(47, f"{tried} of {tried} connected")


def _has_settled(host: Host) -> bool:
    """Whether it has its link-local address, and nobody else had it before."""
    found = subprocess.run(["ip", "-n", host.namespace, "addr"], capture_output=True, text=True, check=True).stdout
    return "fe80" in found and "tentative" not in found


def test_idle(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 48."""
    seconds = count(3, 600)
    with cluster.worker(hosts[0]) as worker, cluster.run(hosts[3], "connect") as head:
        head.stdout_line()
        time.sleep(count(1, 10))  # until the start is over
        parts = {name: _tree(program) for name, program in (("worker", worker), ("head", head))}
        before = {name: processor_time(pids) for name, pids in parts.items()}
        time.sleep(seconds)
        used = {name: (processor_time(pids) - before[name]) / seconds * 100 for name, pids in parts.items()}
    text = f"worker {used['worker']:.2f} %, head {used['head']:.2f} % of a core over {seconds} s"
    record(48, text)
    judge(max(used.values()) < 0.5, text)


def _tree(program: Program) -> list[int]:
    return [program.process.pid, *descendants(program.process.pid)]


def test_a_crowd(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 49: the workers are one process of stand-ins, with TLS and a port each; the head is the frozen one."""
    number = count(20, 200)
    # Files: what is said of so many workers does not fit into a pipe that nobody reads meanwhile.
    with saying(hosts[0], "crowd", cluster.token, number), TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = subprocess.Popen(
            hosts[3].command([*NAMED, cluster.binary, "list", "--json", "--timeout", "5"]),
            env=cluster.env("crowd"),
            stdout=out,
            stderr=err,
        )
        most = 0
        while process.poll() is None:
            for pid in (process.pid, *_below(process.pid)):
                try:
                    most = max(most, memory(pid))
                except (OSError, AssertionError):
                    continue
            time.sleep(0.05)
        out.seek(0)
        err.seek(0)
        listed, said = len(re.findall(r'"state": ?"ready"', out.read())), err.read()
    record(49, f"{listed} of {number} listed in 5 s, head's memory {most / MIB:.0f} MB")
    assert listed == number or not FULL, said[-2000:]
    assert listed > 0
    judge(most < 150 * MIB, f"{most / MIB:.0f} MB")


def _below(pid: int) -> list[int]:
    try:
        return descendants(pid)
    except OSError:
        return []
