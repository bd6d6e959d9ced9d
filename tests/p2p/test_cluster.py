"""Goal: a real head and a real relay in front of the real rpc-server agree: tunnels, the lease, what `list` shows."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.launch import ServerCommand
from app.p2p import rpc
from app.p2p.identity import Role, mint, server_context
from app.p2p.keeper import Keeper, start_keeper
from app.p2p.lender import Lender
from app.p2p.listening import listen
from app.p2p.relay import About, Relay
from app.p2p.server import Ready
from app.p2p.supervisor import Supervisor
from tests.p2p.fake_worker import HANG, eventually, new_token
from tests.p2p.program import run, running

TOKEN, OURS = new_token()


@dataclass
class RealWorker:
    """What `p2p-llama-cpp-rpc` puts together, without its announcement."""

    keeper: Keeper
    server: Supervisor
    relay: Relay
    port: int

    @property
    def peer(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.relay.stop()
        self.server.stop()
        self.keeper.close()


def start(command: ServerCommand, id: str) -> RealWorker:
    keeper, lender = start_keeper("auto"), Lender()
    server = Supervisor(
        keeper, lambda: command, rpc.probe, lender.server_changed, start_timeout=HANG, echo=lambda line: None
    )
    about = About(id, f"name-of-{id}", "0.1.0", "0.5.0", "0c1e57098", lambda: "on")
    relay = Relay(server_context([mint(OURS, Role.WORKER, id)]), about, server, lender)
    listener = listen("127.0.0.1", 0)
    lender.start(server)
    relay.start([listener])
    server.start()
    eventually(lambda: isinstance(server.state, Ready))
    return RealWorker(keeper, server, relay, listener.getsockname()[1])


@pytest.fixture
def worker(rpc_server: ServerCommand) -> Iterator[RealWorker]:
    made = start(rpc_server, "id-1")
    yield made
    made.stop()


def probe(line: str) -> rpc.Probe:
    """What the rpc-server behind a tunnel says of itself."""
    host, _, port = line.partition(":")
    with socket.create_connection((host, int(port)), timeout=HANG) as sock:
        return rpc.probe(sock, HANG)


def connect(*workers: RealWorker) -> list[object]:
    words: list[object] = ["connect", "--no-mdns", "--workers", len(workers)]
    for worker in workers:
        words += ["--peer", worker.peer]
    return words


def test_the_server_answers_through_the_tunnel_again_and_again(worker: RealWorker) -> None:
    with running(TOKEN, *connect(worker)) as head:
        first = probe(head.line())
        assert first.protocol.count(".") == 2
        assert first.memory
        for _ in range(12):  # llama.cpp opens as many, one after the other
            assert probe(head.line()).memory


def test_list_shows_what_the_server_said(worker: RealWorker) -> None:
    status, out, _ = run(TOKEN, "list", "--no-mdns", "--peer", worker.peer, "--json")
    [row] = json.loads("\n".join(out))
    assert status == 0
    assert (row["id"], row["name"], row["state"], row["holder"]) == ("id-1", "name-of-id-1", "ready", None)
    state = worker.server.state
    assert isinstance(state, Ready)
    assert row["rpc"] == state.protocol
    assert [device["name"] for device in row["devices"]] == [device.name for device in state.devices]


def test_another_head_is_told_who_has_the_server_and_gets_it_afterwards(worker: RealWorker) -> None:
    with running(TOKEN, *connect(worker)) as first:
        probe(first.line())
        status, _, err = run(TOKEN, *connect(worker), "--timeout", 1)
        assert status == 6
        assert any(f"busy: {socket.gethostname()}" in line for line in err)
        with running(TOKEN, *connect(worker)) as second:
            second.says(f"busy: {socket.gethostname()}")
            assert second.out == []
            first.send(signal.SIGTERM)
            assert first.wait() == 0
            assert probe(second.line()).memory


def test_a_head_that_is_killed_frees_the_server(worker: RealWorker) -> None:
    with running(TOKEN, *connect(worker)) as first:
        probe(first.line())
        first.process.kill()
        with running(TOKEN, *connect(worker)) as second:
            assert probe(second.line()).memory


def test_a_server_that_dies_under_the_tunnel(worker: RealWorker) -> None:
    with running(TOKEN, *connect(worker)) as head:
        host, _, port = head.line().partition(":")
        with socket.create_connection((host, int(port)), timeout=HANG) as client:
            rpc.hello(client, HANG)
            child = worker.server._child
            assert child is not None
            os.kill(child.pid, signal.SIGKILL)
            assert client.recv(1) == b""
        head.says("the tunnel to name-of-id-1 was")
        head.says("GGML_ABORT")
        assert probe(head.line()).memory, "a connection waits until the server is back"


def test_two_workers(rpc_server: ServerCommand, worker: RealWorker) -> None:
    other = start(rpc_server, "id-2")
    try:
        with running(TOKEN, *connect(other, worker)) as head:
            first, second = head.line().split(",")
            assert probe(first).memory
            assert probe(second).memory
            for number, name in ((0, "name-of-id-2"), (1, "name-of-id-1")):
                assert any(f"{(first, second)[number]} leads to {name}" in line for line in head.err)
    finally:
        other.stop()


def test_a_worker_that_stops_says_so(worker: RealWorker) -> None:
    with running(TOKEN, *connect(worker)) as head:
        head.line()
        worker.relay.stop()
        head.says("lost: name-of-id-1")
