"""Goal: a server that dies is back, one that cannot run is given up, and nothing outlives what the user started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.faults.scale import count, judge
from tests.faults.victim import Victim, descendants, eventually, server_below, victim_on_loopback
from tests.live.lan import Host, missing
from tests.live.model import Shape, make
from tests.live.support import free_port, generate, hidden_environment, serving
from tests.live.test_p2p import Cluster
from tests.p2p.processes import is_gone
from tests.p2p.test_discovery import HEAD

needs_lan = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
LIMIT = 60.0


@contextmanager
def browsing(host: Host, token: str) -> Iterator[subprocess.Popen[str]]:
    """A browser on that machine, which prints what it finds and loses."""
    process = subprocess.Popen(
        host.command([sys.executable, "-c", HEAD, token]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.communicate()


def heard(browser: subprocess.Popen[str], what: str) -> None:
    """Wait until the browser says so."""
    assert browser.stdout is not None
    for line in browser.stdout:
        if json.loads(line)[0] == what:
            return
    raise AssertionError(f"never {what}")


@needs_lan
def test_a_killed_server(cluster: Cluster, hosts: list[Host], record: Record) -> None:
    """Row 26. How the waits between starts grow: tests/p2p/test_supervisor.py."""
    with cluster.worker(hosts[0]) as worker, browsing(hosts[4], cluster.token) as browser:
        heard(browser, "found")
        seen = len(worker.lines)
        os.kill(server_below(worker.process.pid), signal.SIGKILL)
        killed = time.monotonic()
        worker.says("rpc-server was killed by SIGKILL", seen)
        worker.says("ready, RPC protocol", seen)
        took = time.monotonic() - killed
        heard(browser, "gone")
        heard(browser, "found")
        (listed,) = cluster.listed(hosts[4])
        assert listed["state"] == "ready"
    record(26, f"ready again after {took:.2f} s, announcement withdrawn and renewed")
    judge(took <= 1 + 1, f"{took:.2f} s")  # started within 1 s; then it loads


CONNECT = ["connect", "--no-mdns", "--peer", "{peer}", "--base-port", "{port}"]
COMMANDS = {
    "llama-cpp-rpc": ["llama-cpp-rpc", "--", "-p", "{port}"],
    "p2p-llama-cpp-rpc": ["p2p-llama-cpp-rpc", "--no-mdns", "--listen", "127.0.0.1:{port}", "--state-dir", "{home}/2"],
    "connect": ["connect", "--no-mdns", "--peer", "{peer}", "--base-port", "{port}"],
    "connect with a command": [
        "connect",
        "--no-mdns",
        "--peer",
        "{peer}",
        "--base-port",
        "{port}",
        "--",
        "sleep",
        "99",
    ],
}


@contextmanager
def started(victim: Victim, binary: Path, home: Path, command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command that serves on a port; the process that the user started, and the port."""
    port = free_port()
    values = {"port": str(port), "peer": f"127.0.0.1:{victim.port}", "home": str(home)}
    words = [word.format(**values) for word in COMMANDS[command]]
    env = hidden_environment(
        HOME=str(home), TMPDIR=str(home), BACKEND_ASSETS_PATH=f"{home}/assets", LOCALAI_TOKEN=victim.token
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([binary, *words], env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        eventually(lambda: _listens(port) and _has_begun(process, command), (home / "log").read_text())
        yield process, port
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(LIMIT)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_free(port: int) -> bool:
    return not _listens(port)


def _gone(pids: list[int]) -> bool:
    return all(map(is_gone, pids))


def _has_begun(process: subprocess.Popen[bytes], command: str) -> bool:
    wanted = {"p2p-llama-cpp-rpc": 3, "connect with a command": 2}.get(command, 1)
    return len(descendants(process.pid)) >= wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_kill_9(victim: Victim, binary: Path, tmp_path: Path, record: Record, command: str) -> None:
    """Row 29."""
    slowest, tried = 0.0, count(1, 10)
    home = Path(os.path.realpath(tmp_path))
    for _ in range(tried):
        with started(victim, binary, home, command) as (process, port):
            below = descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            eventually(partial(_gone, below), "something outlived it")
            eventually(partial(_is_free, port), "the port is still served")
            slowest = max(slowest, time.monotonic() - killed)
    record(29, f"{command}: all gone within {slowest:.2f} s, {tried} of {tried}")
    judge(slowest <= 1, f"{slowest:.2f} s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@needs_lan
def test_an_orderly_end(cluster: Cluster, hosts: list[Host], record: Record, number: signal.Signals) -> None:
    """Row 30: a watching head and a browser hear of it."""
    with browsing(hosts[4], cluster.token) as browser, ExitStack() as stack:
        worker = stack.enter_context(cluster.worker(hosts[0]))
        heard(browser, "found")
        head = stack.enter_context(cluster.run(hosts[3], "connect", "--log-level", "debug"))
        head.stdout_line()
        below = descendants(worker.process.pid)
        worker.process.send_signal(number)
        ended = time.monotonic()
        assert worker.process.wait(LIMIT) == 0
        eventually(partial(_gone, below), "something outlived it")
        took = time.monotonic() - ended
        heard(browser, "gone")
        head.says("lost: .*goodbye")
        assert "Traceback" not in worker.log
    record(30, f"{number.name}: goodbye told, status 0, all gone after {took:.1f} s")
    judge(took <= 5, f"{took:.1f} s")


def test_the_files_go_and_then_the_server(binary: Path, tmp_path: Path, record: Record) -> None:
    """Row 51."""
    tried = count(1, 5)
    with victim_on_loopback(binary, tmp_path) as victim:
        for _ in range(tried):
            shutil.rmtree(tmp_path / "assets")
            seen = len(victim.log)
            os.kill(victim.server, signal.SIGKILL)
            victim.says("ready, RPC protocol", seen)
            assert list((tmp_path / "assets").glob("*/backend-assets/util/llama-cpp-rpc-server"))
            time.sleep(0.1)
        victim.is_well()
    record(51, f"{tried} of {tried} unpacked again and served")


def test_a_cut_cache_file(binary: Path, clients: Path, tree: Path, tmp_path: Path, record: Record) -> None:
    """Row 54: a kill in mid-write, as a file that is shorter than it was when the server was last asked."""
    model = make(tmp_path / "wide.gguf", Shape(layers=1, width=1024, heads=8, feed_forward=3072))
    home = Path(os.path.realpath(tmp_path))
    cache = home / "cache"
    env = {"LLAMA_CACHE": str(cache)}

    def cached() -> list[Path]:
        return list((cache / "rpc").glob("[0-9a-f]*"))

    def cut() -> int:
        """Cut every file of the cache in half; how many there are."""
        files = cached()
        for path in files:
            os.truncate(path, path.stat().st_size // 2)
        return len(files)

    bare, port = tree / "backend-assets/util/llama-cpp-rpc-server", free_port()
    with serving([bare, "-p", str(port), "-c"], port, hidden_environment(**env)):
        expected = generate(clients, model, f"127.0.0.1:{port}")
        assert cut() > 0, "nothing was cached: this test could not fail"
        assert generate(clients, model, f"127.0.0.1:{port}") != expected, "cut files do no harm: as above"
    shutil.rmtree(cache)

    with victim_on_loopback(binary, home, "--llama-cpp-args", "-c", env=env) as victim:
        base = free_port()
        words = ["connect", "--no-mdns", "--peer", f"127.0.0.1:{victim.port}", "--base-port", str(base)]
        head = subprocess.Popen(
            [binary, *words],
            env=hidden_environment(HOME=str(home), TMPDIR=str(home), LOCALAI_TOKEN=victim.token),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert head.stdout is not None
            rpc = head.stdout.readline().strip()
            for _ in range(count(1, 3)):
                # Killed under a client: the files of this client have not been seen whole.
                client = subprocess.Popen(
                    [clients / "llama-bench", "-m", model, "--rpc", rpc, "-ngl", "99", "-p", "256", "-r", "1000"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                eventually(lambda: len(cached()) >= 3)
                time.sleep(0.5)
                assert cut() > 0
                seen = len(victim.log)
                os.kill(victim.server, signal.SIGKILL)
                client.wait(LIMIT)
                victim.says("ready, RPC protocol", seen)
                assert generate(clients, model, rpc) == expected, "tokens are wrong"
                for path in cached():  # the directory stays: the sandbox is open to this one, not to its name
                    path.unlink()
        finally:
            head.terminate()
            head.communicate(timeout=LIMIT)
    record(54, "cut files thrown away after the server's end, tokens right")
