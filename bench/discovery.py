"""How long until a head sees a worker, and how it does with many of them; between network namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from bench.processes import BenchError, given, usage
from bench.report import Row, publish
from tests.live.lan import Host, lan, missing
from tests.live.support import hidden_environment

ROUNDS = 9
MANY = 200
_SEEN = """
import json, sys, time
from app.p2p.announcer import Announcer
from app.p2p.browser import Browser
from app.p2p.token import generate, network, parse
from threading import Event
seen = Event()
ours = network(parse(generate()))
browser = Browser([ours], lambda _: seen.set(), lambda _: None)
browser.start()
time.sleep(2)
worker = Announcer("bench", [ours], port=25052, protocol=1)
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    worker.announce("7.0.0")
    assert seen.wait(10)
    print((time.perf_counter() - started) * 1000, flush=True)
    worker.withdraw()
    time.sleep(0.5)
    seen.clear()
worker.close(); browser.close()
"""
# Relays without a server behind them: what a head asks of many workers before it uses one.
_MANY = """
import sys
from zeroconf import ServiceInfo, Zeroconf
from app.p2p.announcement import Announcement, write
from app.p2p.identity import Role, authority, mint, server_context
from app.p2p.lender import Lender
from app.p2p.listening import listen
from app.p2p.relay import About, Relay
from app.p2p.server import Starting
from app.p2p.mdns import SERVICE
from app.p2p.token import network, parse
class NoServer:
    state = Starting()
ca = authority(network(parse(sys.argv[1])))
zeroconf = Zeroconf(interfaces=[sys.argv[2]])
for number in range(int(sys.argv[3])):
    name, lender = f"many-{number:03}", Lender()
    lender.start(NoServer())
    about = About(name, name, "0", "0", "0", lambda: "on")
    relay = Relay(server_context([mint(ca, Role.WORKER, name)]), about, NoServer(), lender)
    relay.start([listen(sys.argv[2], 30000 + number)])
    properties = write(Announcement(name, name, 30000 + number, ca.tag, 1, "7.0.0"), ca.network)
    info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", 30000 + number, properties=properties,
                       server=f"{name}.local.", parsed_addresses=[sys.argv[2]])
    zeroconf.loop.call_soon_threadsafe(zeroconf.registry.async_add, info)
print("ready", flush=True)
sys.stdin.read()
"""


def run() -> None:
    """Measure and publish."""
    reason = missing()
    if reason:
        raise BenchError(f"bench discovery cannot run here: {reason}")
    binary = str(given("WORKER_TEST_BINARY"))
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    with lan(2) as (worker, head), tempfile.TemporaryDirectory(prefix="worker-bench-") as scratch:
        env = hidden_environment(HOME=scratch, BACKEND_ASSETS_PATH=f"{scratch}/assets", LOCALAI_TOKEN=token)
        rows = [_announced_to_seen(head)]
        rows += _starts(binary, worker, head, env)
        rows += _many(binary, worker, head, env, token)
    publish("discovery", rows)


def _announced_to_seen(host: Host) -> Row:
    command = host.command([sys.executable, "-c", _SEEN, str(ROUNDS)])
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Row("announced until seen by a running head", "ms", tuple(map(float, out.split())))


def _starts(binary: str, worker: Host, head: Host, env: dict[str, str]) -> list[Row]:
    ready, line = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        process = subprocess.Popen(
            worker.command([binary, "p2p-llama-cpp-rpc"]),
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        with process:
            assert process.stderr is not None
            next(text for text in process.stderr if "ready, RPC protocol" in text)
            ready.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            connect = subprocess.Popen(
                head.command([binary, "connect", "--workers", "1"]),
                env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
            with connect:
                assert connect.stdout is not None
                connect.stdout.readline()
                line.append((time.perf_counter() - started) * 1000)
                connect.terminate()
            process.terminate()
            process.stderr.read()
    return [
        Row("worker start until announced", "ms", tuple(ready)),
        Row("connect --workers 1 until its line", "ms", tuple(line)),
    ]


def _many(binary: str, worker: Host, head: Host, env: dict[str, str], token: str) -> list[Row]:
    command = worker.command([sys.executable, "-c", _MANY, token, worker.address, str(MANY)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as workers:
        assert workers.stdout is not None
        assert workers.stdin is not None
        workers.stdout.readline()
        took, found, memory = [], [], []
        for _ in range(3):
            watch = subprocess.Popen(
                head.command([binary, "list", "--watch", "--json", "--timeout", "30"]),
                env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
            started = time.perf_counter()
            with watch:
                assert watch.stdout is not None
                names: set[str] = set()
                while len(names) < MANY and time.perf_counter() - started < 30:
                    names.add(json.loads(watch.stdout.readline())["name"])
                took.append((time.perf_counter() - started) * 1000)
                found.append(float(len(names)))
                memory.append(usage(watch.pid).peak)
                watch.terminate()
                watch.stdout.read()
        workers.stdin.close()
    return [
        Row(f"list of {MANY} workers", "ms", tuple(took)),
        Row("of them found", "", tuple(found)),
        Row("memory of that head, at most", "MB", tuple(memory)),
    ]
