"""Goal: the token opens, nothing else does, and it is nowhere to be found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from app.p2p.frames import Control, Purpose, encode
from app.p2p.identity import Role, client_context, mint, server_context
from app.p2p.token import generate
from tests.faults.conftest import Record
from tests.faults.scale import count
from tests.faults.victim import Victim, descendants, victim_on_loopback
from tests.live.support import hidden_environment
from tests.live.test_p2p import Cluster
from tests.p2p.test_identity import join

HANG = 30.0


def finish(binary: Path, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    env = hidden_environment(HOME=str(home), TMPDIR=str(home), **variables)
    return subprocess.run([binary, *words], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_wrong_token_on_the_heads_side(binary: Path, victim: Victim, tmp_path: Path, record: Record) -> None:
    """Row 12."""
    tried = count(3, 100)
    words = ["connect", "--no-mdns", "--peer", f"127.0.0.1:{victim.port}", "--timeout", "1", "--", "echo", "{rpc}"]

    def attempt(_: int) -> None:
        told = finish(binary, tmp_path, *words, LOCALAI_TOKEN=generate())
        assert told.returncode == 5, told.stderr
        assert "token refused" in told.stderr
        assert told.stdout == "", "a tunnel was offered"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attempt, range(tried)))
    record(12, f"{tried} of {tried} told, 0 tunnels")


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library under which a program takes $YEAR for the year."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make another clock with")
    directory = tmp_path_factory.mktemp("clock")
    (directory / "clock.c").write_text(
        "#define _GNU_SOURCE\n#include <stdlib.h>\n#include <sys/time.h>\n#include <time.h>\n"
        "#include <sys/syscall.h>\n#include <unistd.h>\n"
        "static long then(void) { return (atol(getenv(\"YEAR\")) - 1970) * 31556952L + 86400; }\n"
        "time_t time(time_t *t) { long now = then(); if (t) *t = now; return now; }\n"
        "int gettimeofday(struct timeval *restrict tv, void *restrict tz)\n"
        "{ tv->tv_sec = then(); tv->tv_usec = 0; return 0; }\n"
        "int clock_gettime(clockid_t id, struct timespec *ts)\n"
        "{ if (id != CLOCK_REALTIME) return syscall(SYS_clock_gettime, id, ts);\n"
        "  ts->tv_sec = then(); ts->tv_nsec = 0; return 0; }\n"
    )  # fmt: skip
    library = directory / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, directory / "clock.c"], check=True)
    return library


def test_any_clock(binary: Path, clock: Path, tmp_path: Path, record: Record) -> None:
    """Row 14: every pair of a worker and a head whose clocks stand at 1970, 2099 or now."""
    now = time.strftime("%Y")
    for of_worker in ("1970", "2099"):
        home = tmp_path / of_worker
        home.mkdir()
        wrong = {"LD_PRELOAD": str(clock), "YEAR": of_worker}
        with victim_on_loopback(binary, home, env=wrong) as victim:
            assert clock.name in Path(f"/proc/{victim.launcher}/maps").read_text(), "its clock is right"
            seen = subprocess.run(["date", "+%Y"], env=os.environ | wrong, capture_output=True, text=True, check=True)
            assert seen.stdout.strip() == of_worker
            words = ["connect", "--no-mdns", "--peer", f"127.0.0.1:{victim.port}", "--", "true"]
            for of_head in ("2099", "1970", now)[: count(1, 3)]:
                variables = {"LD_PRELOAD": str(clock), "YEAR": of_head, "LOCALAI_TOKEN": victim.token}
                told = finish(binary, tmp_path, *words, **variables)
                assert told.returncode == 0, told.stderr
    record(14, f"{count(2, 6)} of {count(2, 6)} pairs of clocks connect")


def test_a_saved_session(victim: Victim, record: Record) -> None:
    """Row 15: of a server with the worker's own certificate that does hand tickets out."""
    client = client_context(mint(victim.authority, Role.HEAD, "desk"))
    generous = server_context([mint(victim.authority, Role.WORKER, "box")])
    generous.num_tickets = 2
    generous.options &= ~ssl.OP_NO_TICKET
    saved = join(client, generous, victim.authority.tag)[0].tls.session
    assert saved is not None
    assert saved.has_ticket
    resumed, offered, tried = 0, 0, count(10, 200)
    for _ in range(tried):
        with (
            socket.create_connection(("127.0.0.1", victim.port), HANG) as plain,
            client.wrap_socket(plain, server_hostname=victim.authority.tag, session=saved) as tls,
        ):
            assert tls.recv(4), "an honest head was refused"
            resumed += bool(tls.session_reused)
            offered += tls.session is not None and tls.session.has_ticket and tls.session is not saved
    record(15, f"{resumed} of {tried} resumed, {offered} tickets handed out")
    assert (resumed, offered) == (0, 0)


def test_a_recorded_handshake(victim: Victim, record: Record) -> None:
    """Row 16: all that a head sent, to its first message, is sent again."""
    context = client_context(mint(victim.authority, Role.HEAD, "desk"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=victim.authority.tag)
    sent: list[bytes] = []
    with socket.create_connection(("127.0.0.1", victim.port), HANG) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sent.append(outgoing.read())
                sock.sendall(sent[-1])
                incoming.write(sock.recv(65536))
        tls.write(encode(Control(1, "ab" * 16, "replayed", "0", Purpose.LIST)))
        sent.append(outgoing.read())
        sock.sendall(sent[-1])
        victim.says("replayed .* is here to list")
    genuine, tried = victim.log.count("replayed"), count(20, 1_000)
    victim.says("replayed has left")
    genuine = victim.log.count("replayed")
    for _ in range(tried):
        with socket.create_connection(("127.0.0.1", victim.port), HANG) as sock, suppress(ConnectionError):
            sock.sendall(sent[0])
            assert sock.recv(65536), "the first flight is refused already: this test could not fail"
            for flight in sent[1:]:
                sock.sendall(flight)
            while sock.recv(65536):
                pass
    victim.is_well()
    record(16, f"0 of {tried} accepted")
    assert victim.log.count("replayed") == genuine


WEAK = {
    "empty": (b"\n", "holds no token"),
    "a password": (b"correct horse battery staple\n", "weak"),
    "short": (b"12345\n", "weak"),
    "huge": (b"a" * 100_000, "too long"),
    "a long line": (b"a" * 5_000, "too long"),
    "binary": (bytes(range(1, 32)) * 3, "characters that no token has"),
    "not UTF-8": (b"\xff\xfe\xfd\n", "characters that no token has"),
    "of a later version": (b"worker2_" + b"a" * 56, "version 2"),
    "a poor LocalAI token": (b"b3RwOgogIGRodDoKICAgIGtleTogYWFhYQo=\n", "LocalAI token is damaged"),
}


@pytest.mark.parametrize("command", ["p2p-llama-cpp-rpc", "connect"])
def test_tokens_that_are_none(binary: Path, tmp_path: Path, record: Record, command: str) -> None:
    """Row 19, with every slip of one character in a real one besides (tests/p2p/test_token.py)."""
    good = generate()
    cases = WEAK | {
        "mistyped": (good[:-1].encode() + (b"a" if good[-1] != "a" else b"b"), "mistyped"),
        "cut": (good[:-5].encode(), "mistyped"),
    }
    file = tmp_path / "token"
    for name, (content, message) in list(cases.items())[-count(5, 99) :]:
        file.write_bytes(content)
        file.chmod(0o600)
        told = finish(binary, tmp_path, command, "--token-file", str(file))
        error, hint, *rest = told.stderr.splitlines()
        assert (told.returncode, rest) == (2, []), (name, told.stderr)
        assert error.startswith("error: "), name
        assert message in error, (name, error)
        assert hint.startswith("hint: "), name
    record(19, f"{command}: {count(5, len(cases))} of {count(5, len(cases))} told apart")


def test_the_token_is_in_no_log_core_or_command_line(binary: Path, tmp_path: Path, record: Record) -> None:
    """Row 20. What is announced and what crosses the wire: tests/live/test_p2p.py."""
    with victim_on_loopback(binary, tmp_path, "--log-level", "trace") as victim:
        looked = 0
        secret = victim.token.encode()
        below = descendants(victim.process.pid)
        for pid in (victim.process.pid, *below):
            assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
            looked += 1
        assert secret not in Path(f"/proc/{victim.server}/environ").read_bytes()
        for pid in below:
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"^Max core file size\s+0\s+0\s", limits, re.MULTILINE), "it would leave a core file"
        victim.greets(3)
        os.kill(victim.launcher, signal.SIGABRT)
        victim.process.wait(HANG)
        logs = (victim.home / "stderr").read_bytes() + (victim.home / "stdout").read_bytes()
        assert secret not in logs
        assert victim.token[8:40].encode() not in logs
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.stat().st_size < 64 << 20:
                assert secret not in path.read_bytes(), f"the token is in {path}"
                looked += 1
    record(20, f"0 hits in {looked} command lines and files, all logs, the server's environment; no core file")


def test_a_flag_is_warned_of(binary: Path, tmp_path: Path, cluster: Cluster) -> None:
    """Row 20: in argv it is where the user put it."""
    told = finish(
        binary, tmp_path, "list", "--no-mdns", "--peer", "127.0.0.1:9", "--token", cluster.token, "--timeout", "1"
    )
    assert "--token is seen by everybody on this machine" in told.stderr
    assert cluster.token not in told.stderr
