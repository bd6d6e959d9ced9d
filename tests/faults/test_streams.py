"""Goal: what arrives is what was sent, whatever the size, and who does not read costs no memory and is not cut.

Row 17 between two pumps; the rest between a frozen head and a frozen worker with a stand-in for rpc-server.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.p2p.pump import PumpEnd
from tests.faults.conftest import Record
from tests.faults.scale import FULL, count, judge
from tests.faults.stand_in import ask
from tests.faults.victim import Victim, eventually, memory, victim_on_loopback
from tests.live.support import children, free_port, hidden_environment
from tests.p2p.test_pump import Tunnel, drain

HANG = 60.0
MIB = 1 << 20
SEED = 17


@pytest.mark.parametrize("how", ["a flipped bit", "a cut"])
def test_damaged_streams(record: Record, how: str) -> None:
    """Row 17: nothing wrong is passed on, and the end is called by its name."""
    chance, tried = random.Random(SEED), count(3, 100)
    payload = os.urandom(2 * MIB)
    for _ in range(tried):
        at = chance.randrange(4096, len(payload))
        with closing(Tunnel(wired=True)) as tunnel:
            if how == "a flipped bit":
                tunnel.flip_at = at

            def upload(tunnel: Tunnel = tunnel) -> None:
                with suppress(OSError):
                    tunnel.client.sendall(payload)

            tunnel.pool.submit(upload)
            if how == "a cut":
                tunnel.server.recv(1, socket.MSG_PEEK)
                tunnel.cut()
            arrived = drain(tunnel.server)
            assert payload.startswith(arrived), "wrong bytes were passed on"
            end = tunnel.worker_end.result(HANG)
            assert end is (PumpEnd.ERROR if how == "a flipped bit" else PumpEnd.CUT)
    record(17, f"{how}: {tried} of {tried} closed as an error, 0 wrong bytes")


@dataclass(frozen=True)
class Pair:
    """A head's tunnel and the worker behind it."""

    port: int
    head: int
    """The process of the tunnel."""
    worker: Victim


@pytest.fixture(scope="module")
def pair(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("pair")
    runner = free_port()
    with _running([sys.executable, "-m", "tests.faults.stand_in", str(runner)], {}, "on"):
        flags = ("--no-runner", "--runner-port", str(runner))
        with victim_on_loopback(binary, home, *flags) as worker:
            base = free_port()
            words = ["connect", "--no-mdns", "--peer", f"127.0.0.1:{worker.port}", "--base-port", str(base)]
            env = {"LOCALAI_TOKEN": worker.token, "HOME": str(home), "TMPDIR": str(home)}
            with _running([binary, *words], env, "127.0.0.1:") as (head, line):
                yield Pair(int(line.rpartition(":")[2]), children(head.pid)[0], worker)


@contextmanager
def _running(command: list[str | Path], env: dict[str, str], first: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that has printed a line that begins with `first`."""
    environment = (hidden_environment() if env else dict(os.environ)) | env
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith(first), line
        yield process, line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG)


def test_a_gibibyte_each_way(pair: Pair, record: Record) -> None:
    """Row 21, at once."""
    size = count(16 * MIB, 1024 * MIB)
    equal, took = ask(pair.port, size, size)
    record(21, f"{size // MIB} MiB each way: SHA-256 {'equal' if equal else 'DIFFERENT'}, {took:.1f} s")
    assert equal


def test_a_server_that_computes_for_a_minute(pair: Pair, record: Record) -> None:
    """Row 22: it reads nothing meanwhile; the upload waits, and is not cut."""
    seconds, size = count(2, 60), 64 * MIB
    ask(pair.port, size, size)  # so that what is allocated once does not count
    before = memory(pair.head), memory(pair.worker.launcher)
    with ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(ask, pair.port, size, MIB, server_pauses=seconds)
        grown = [0.0, 0.0]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            now = memory(pair.head), memory(pair.worker.launcher)
            grown = [max(most, (this - base) / MIB) for most, this, base in zip(grown, now, before, strict=True)]
            time.sleep(0.2)
        equal, took = transfer.result(HANG)
    text = f"server silent for {seconds} s: not cut, memory of head {grown[0]:+.2f} MiB, of worker {grown[1]:+.2f} MiB"
    record(22, text)
    assert equal
    assert took >= seconds
    judge(max(grown) <= 2, text)  # with all that is no buffer; what is buffered: tests/p2p/test_pump.py


def test_a_head_that_does_not_read(pair: Pair, record: Record) -> None:
    """Row 22: the worker's socket gives up on it after 20 s, and the server is free again."""
    if not FULL:
        pytest.skip("takes 25 s: in the full run only")
    before = memory(pair.worker.launcher)
    try:
        equal, _ = ask(pair.port, 0, 64 * MIB, we_pause=25)
        outcome = "served" if equal else "WRONG"
    except (OSError, EOFError):
        outcome = "cut off"
    assert outcome != "WRONG"
    grown = (memory(pair.worker.launcher) - before) / MIB
    record(22, f"head silent for 25 s: {outcome}, memory of worker {grown:+.2f} MiB")
    judge(grown <= 2, f"memory {grown:+.2f} MiB")

    def served() -> bool:
        try:
            return ask(pair.port, MIB, MIB)[0]
        except (OSError, EOFError):
            return False

    eventually(served, "the server is not free again")
