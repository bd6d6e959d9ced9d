"""What happens in the soak. Each event disturbs something, and ends when all of it works again; else it raises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.live.support import hidden_environment, wait_until_gone
from tests.soak.field import LASTING, PASSING, REAL, Broken, Field, Program, wait_until

MIB = 1 << 20
LONG_DOWN = 26.0
"""Seconds without a link after which both sides have given each other up."""
SHORT_DOWN = 5.0
STRANGERS = 3.0
"""Seconds that strangers come."""


def traffic(field: Field) -> None:
    """Two connections of the lasting head at once; not a byte may be lost."""
    clients = [field.send(LASTING, field.chance.randrange(1, 8 * MIB)) for _ in range(2)]
    for client in clients:
        field.check(client)


def passing_head(field: Field) -> None:
    """A head comes, sends, and goes."""
    name = field.chance.choice([LASTING, PASSING])
    command = field.client("{rpc}", field.chance.randrange(1, 2 * MIB))
    told = field.finish("connect", "--only", name, "--", *command)
    if told.returncode != 0:
        raise Broken(f"connect ended with {told.returncode}: {told.stderr[-500:]}")
    field.count(told.stdout)


def listing(field: Field) -> None:
    """Everybody is listed."""

    def complete() -> bool:
        told = field.finish("list", "--json")
        listed = json.loads(told.stdout or "[]")
        return {worker["name"] for worker in listed if worker["state"]} == {LASTING, PASSING, REAL}

    wait_until(complete, "not every worker is listed")


def wrong_token(field: Field) -> None:
    """A head with another token is refused, and told so."""
    other = subprocess.run(
        [field.binary, "token"], env=hidden_environment(), capture_output=True, text=True, check=True
    )
    peer = field.machines[field.chance.choice([LASTING, REAL])].address
    told = field.finish(
        "connect", "--no-mdns", "--peer", peer, "--timeout", "10", "--", "true", token=other.stdout.strip()
    )
    if told.returncode != 5 or "token refused" not in told.stderr:
        raise Broken(f"a wrong token ended with {told.returncode}: {told.stderr[-500:]}")


def strangers(field: Field) -> None:
    """Half-open connections, noise and foreign handshakes, while the lasting head works."""
    command = [sys.executable, "-m", "tests.soak.stranger", field.hosts[0].address, "25052", str(STRANGERS)]
    crowd = subprocess.Popen(
        field.stranger_host.command([*command, str(field.chance.getrandbits(32))]),
        env=field.env(field.stranger_host),
        stdout=subprocess.PIPE,
        text=True,
    )
    while crowd.poll() is None:
        field.check(field.send(LASTING, MIB))
    told, _ = crowd.communicate()
    if crowd.returncode != 0 or not told.strip().isdecimal():
        raise Broken(f"the strangers ended with {crowd.returncode}: {told}")


def killed_backend(field: Field) -> None:
    """The server of a --no-runner worker is killed in mid-traffic and started again."""
    client = field.send(LASTING, 32 * MIB)
    time.sleep(field.chance.random())
    field.backends[LASTING].kill()
    field.backends[LASTING].wait()
    field.check(client, whole=False)
    field.start_backend(LASTING)
    field.prove(LASTING)


def killed_server(field: Field) -> None:
    """rpc-server is killed; the worker starts it again."""
    worker = field.workers[REAL]
    seen = len(worker.text())
    os.kill(_server(worker), signal.SIGKILL)
    worker.says("rpc-server was killed by SIGKILL(.|\n)*ready, RPC protocol 7", seen)


def killed_keeper(field: Field) -> None:
    """The process that keeps rpc-server is killed: the worker ends with an error, and nothing is left."""
    worker = field.workers[REAL]
    family = worker.family
    os.kill(family[2], signal.SIGKILL)  # bootloader, launcher, keeper, server
    if (status := worker.gone(family)) != 1:
        raise Broken(f"without its keeper the worker ended with {status}")
    _again(field, REAL)


def killed_worker(field: Field) -> None:
    """A worker is killed with -9, its bootloader or itself, in mid-traffic; another takes its place."""
    name = field.chance.choice([PASSING, REAL])
    worker = field.workers[name]
    with _under_traffic(field, name):
        family = worker.family
        os.kill(family[field.chance.randrange(2)], signal.SIGKILL)
        worker.gone(family)
    _again(field, name)


def stopped_worker(field: Field) -> None:
    """A worker is ended as it should be, in mid-traffic, and comes back."""
    name = field.chance.choice([PASSING, REAL])
    with _under_traffic(field, name):
        if status := field.workers[name].end(field.chance.choice([signal.SIGTERM, signal.SIGINT])):
            raise Broken(f"a stopped worker ended with {status}")
    _again(field, name)


def killed_head(field: Field) -> None:
    """A head is killed with -9, its bootloader or itself, in mid-traffic; the worker is free for the next."""
    head = field.start("killed-head", field.passing_host, "connect", "--only", LASTING, "--", *_endless(field))
    head.says("leads to")
    time.sleep(0.5 + field.chance.random())  # its command starts
    family = head.family
    os.kill(family[field.chance.randrange(2)], signal.SIGKILL)
    head.process.wait()
    for pid in family[2:]:  # its command is the user's: it learns by its broken connection
        if not wait_until_gone(pid):
            os.kill(pid, signal.SIGKILL)
    field.prove(LASTING)


def stopped_head(field: Field) -> None:
    """A head without a command is ended as it should be."""
    head = field.start("stopped-head", field.passing_host, "connect", "--only", PASSING)
    wait_until(lambda: head.out.read_text().strip(), "the head prints no line")
    if status := head.end(field.chance.choice([signal.SIGTERM, signal.SIGINT])):
        raise Broken(f"a stopped head ended with {status}")


def pulled_cable(field: Field) -> None:
    """A link is down for a while, in mid-traffic."""
    host, name = field.chance.choice([(field.hosts[0], LASTING), (field.hosts[1], PASSING), (field.hosts[3], LASTING)])
    long = field.chance.random() < 0.3
    with _under_traffic(field, name):
        host.link("down")
        try:
            time.sleep(LONG_DOWN if long else SHORT_DOWN * field.chance.random())
        finally:
            host.link("up")
    field.prove(name)


def new_address(field: Field) -> None:
    """A worker's machine gets other addresses; heads find it again by itself."""
    host = field.machines[PASSING]
    number = field.chance.randrange(100, 250)
    for words in (
        ("flush", "dev", "eth0", "scope", "global"),
        ("add", f"10.77.0.{number}/24", "dev", "eth0"),
        ("add", f"fd77::{number}/64", "dev", "eth0", "nodad"),
    ):
        subprocess.run(["ip", "-n", host.namespace, "addr", *words], check=True)
    field.prove(PASSING)


def model(field: Field) -> None:
    """llama.cpp's own client gets the tokens that it gets from a bare server."""
    if command := field.tokens():
        told = field.finish("connect", "--only", REAL, "--", *command)
        if told.stdout != field.expected:
            raise Broken(f"other tokens than from a bare server ({told.returncode}): {told.stderr[-500:]}")


def killed_client(field: Field) -> None:
    """llama.cpp's client is killed in the middle of its work; the next one gets the right tokens."""
    if field.clients and field.model:
        words: list[str | Path] = [field.clients / "llama-bench", "-m", field.model, "--rpc", field.tunnel(REAL)]
        client = subprocess.Popen(
            field.lasting_host.command([*words, "-ngl", "99", "-p", "512", "-r", "1000"]),
            env=field.env(field.lasting_host),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(2 * field.chance.random())
        client.kill()
        client.wait()
        model(field)


EVENTS: Mapping[str, Callable[[Field], None]] = {
    event.__name__.replace("_", " "): event
    for event in (
        traffic, passing_head, listing, wrong_token, strangers, killed_backend, killed_server, killed_keeper,
        killed_worker, stopped_worker, killed_head, stopped_head, pulled_cable, new_address, model, killed_client,
    )
}  # fmt: skip


def _server(worker: Program) -> int:
    for pid in worker.family:
        if Path(f"/proc/{pid}/exe").readlink().name == "llama-cpp-rpc-server":
            return pid
    raise Broken(f"{worker.name} has no rpc-server")


def _again(field: Field, name: str) -> None:
    """Start a worker anew; the lasting head gets to it through the same tunnel."""
    tunnel = field.tunnel(name)
    head = field.workers["head"]
    seen = len(head.text())
    field.start_worker(name)
    if name == REAL:
        head.says(f"back: {name}", seen)
    else:
        field.prove(name)
    if field.tunnel(name) != tunnel:
        raise Broken(f"the tunnel to {name} has moved")


@contextmanager
def _under_traffic(field: Field, name: str) -> Iterator[None]:
    """Bytes are on the way meanwhile, where the worker has an echo; they may be cut, never wrong."""
    client = None if name == REAL else field.send(name, 32 * MIB)
    time.sleep(field.chance.random())
    try:
        yield
    finally:
        if client is not None:
            field.check(client, whole=False)


def _endless(field: Field) -> list[str | Path]:
    """The command of a head that sends until it is killed."""
    client = " ".join(map(str, field.client("$1", 32 * MIB)))
    return ["sh", "-c", f"while {client}; do :; done", "sh", "{rpc}"]
