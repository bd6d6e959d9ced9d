"""Goal: messages arrive whole however they are cut, and what may not come now ends the talk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from app.p2p.channel import Channel
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import Ok, PeerError, Ping, Pong, Welcome, encode
from app.p2p.identity import Role, authority, client_context, mint, server_context
from app.p2p.token import generate, network, parse

LIMIT = 20.0


@pytest.fixture
def pair() -> Iterator[tuple[Conversation, Conversation]]:
    """A head's conversation and its worker's."""
    ca = authority(network(parse(generate())))
    here, there = socket.socketpair()
    head = Channel(here, client_context(mint(ca, Role.HEAD, "h")), server_side=False, server_hostname=ca.tag)
    worker = Channel(there, server_context([mint(ca, Role.WORKER, "w")]), server_side=True)
    shaking = Thread(target=worker.handshake)
    shaking.start()
    head.handshake()
    shaking.join()
    yield Conversation(head), Conversation(worker)
    head.close()
    worker.close()


def test_messages_cut_and_joined(pair: tuple[Conversation, Conversation]) -> None:
    head, worker = pair
    whole = encode(Welcome(1)) + encode(Ping()) + encode(Ok()) + b"the server's bytes"
    for byte in whole[:20]:
        worker.channel.write(bytes([byte]))
    worker.channel.write(whole[20:])
    assert head.receive(Welcome, timeout=LIMIT) == Welcome(1)
    assert head.receive(Ping, Pong, timeout=LIMIT) == Ping()
    assert head.receive(Ok, timeout=LIMIT) == Ok()
    assert head.rest() == b"the server's bytes"


def test_nothing_in_time_can_be_tried_again(pair: tuple[Conversation, Conversation]) -> None:
    head, worker = pair
    frame = encode(Welcome(1))
    worker.channel.write(frame[:7])
    with pytest.raises(TimeoutError):
        head.receive(Welcome, timeout=0.05)
    worker.channel.write(frame[7:])
    assert head.receive(Welcome, timeout=LIMIT) == Welcome(1)


def test_what_may_not_come_now(pair: tuple[Conversation, Conversation]) -> None:
    head, worker = pair
    worker.send(Pong())
    with pytest.raises(PeerError):
        head.receive(Welcome, timeout=LIMIT)


def test_a_goodbye_instead(pair: tuple[Conversation, Conversation]) -> None:
    head, worker = pair
    worker.send(Ping())
    worker.channel.close()
    assert head.receive(Ping, timeout=LIMIT) == Ping()
    with pytest.raises(PeerClosed):
        head.receive(Ping, timeout=LIMIT)
