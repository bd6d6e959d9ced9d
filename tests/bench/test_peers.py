"""Goal: every peer's configuration carries bytes both ways through two relays, and what those cost is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.endpoint import endpoint
from bench.peers import Peer, peers
from bench.traffic import Client, Turn

PEERS = peers()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    with endpoint(tmp_path) as port:
        yield port


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_it_carries_bytes(peer: Peer, server: int, tmp_path: Path) -> None:
    if peer.missing:
        pytest.skip(peer.missing)
    room = tmp_path / "room"
    room.mkdir()
    with peer.start(server, room) as pair:
        for _ in range(2):  # the second connection finds what the first one left
            with Client(pair.port, (Turn((100_000,), (200_000,)), Turn((1,), (1,), 3))) as client:
                assert len(client.play()) == 4
        near, far = pair.sides
        if peer.name != "direct":
            assert pair.port != server
            assert pair.cpu > 0
            assert near.peak > 1, "no memory of the relay at the client was seen"
            assert far.peak > 1, "no memory of the relay at the server was seen"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_it_tells_its_version(peer: Peer) -> None:
    if peer.missing:
        pytest.skip(peer.missing)
    assert peer.described == "no relay" or peer.described[0].isdigit()


def test_a_missing_peer_says_what_is_missing() -> None:
    assert peers({"WORKER_TEST_BINARY": "/nowhere/worker"})[-1].described == "missing: /nowhere/worker"
