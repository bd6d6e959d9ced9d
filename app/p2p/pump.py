"""Bytes both ways between a plain socket and a channel: the hot path."""

from __future__ import annotations

import logging
import os
import select
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from threading import Thread

from app.p2p.channel import BLOCK, Channel, ChannelCut, ChannelError

PLAIN_BUFFER = 256 * 1024
"""Bytes of each of the plain socket's two buffers. The kernel's own grow to megabytes, which no cache holds."""
UNREAD_LIMIT = 5.0
"""Seconds that a local program has to read what came before the peer's end."""

log = logging.getLogger(__name__)


class PumpEnd(Enum):
    """Why a tunnel ended, in words for the log."""

    PEER_CLOSED = "closed by the other side"
    PLAIN_CLOSED = "closed by the local program"
    STOPPED = "closed by us"
    CUT = "cut off"
    ERROR = "broken: what arrived is not what was sent"


@dataclass(slots=True)
class Traffic:
    """Bytes that one tunnel has moved so far. One thread writes each number, any may read them."""

    to_peer: int = 0
    from_peer: int = 0


def pump(plain: socket.socket, channel: Channel, traffic: Traffic) -> PumpEnd:
    """Move bytes both ways until one side ends, close both, and tell which end came first.

    An end on one side is the end of the tunnel, not of half of it: llama.cpp
    closes its sockets whole, and Python's ssl cannot read on once it has said
    goodbye. What came before a clean end is delivered. Who does not read holds up
    who sends: besides the sockets' own buffers, three blocks a direction wait
    here. `channel.close()` from another thread stops it.
    """
    ends: list[PumpEnd] = []

    def send() -> None:
        ends.append(_send(plain, channel, traffic))
        if ends[-1] is PumpEnd.PLAIN_CLOSED:
            channel.close()  # one that broke is closed by its reader, who has yet to find out why
        _wake(plain)

    sender = Thread(target=send, name="pump", daemon=True)
    with plain:
        try:
            watch = channel.watch()
        except ChannelError as error:
            return _reason(channel, error)
        try:
            plain.settimeout(None)
            if plain.family != socket.AF_UNIX:
                # rpc-server answers in pieces; with Nagle's algorithm each waits for the last one's ACK.
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                plain.setsockopt(socket.SOL_SOCKET, option, PLAIN_BUFFER)
            sender.start()
            received = _receive(plain, channel, traffic, watch)
            ends.append(received)
        finally:
            channel.close()
            _wake(plain)
            os.close(watch)
        sender.join()
    # Who writes notices only that the channel broke; who reads finds the goodbye or the alert behind it.
    if ends[0] is PumpEnd.CUT and received is not PumpEnd.PLAIN_CLOSED:
        return received
    return ends[0]


def _send(plain: socket.socket, channel: Channel, traffic: Traffic) -> PumpEnd:
    view = memoryview(bytearray(BLOCK))
    try:
        while count := plain.recv_into(view):
            channel.write(view[:count])
            traffic.to_peer += count
    except ChannelError as error:
        return _reason(channel, error)
    except OSError as error:
        log.debug("the local program's connection broke: %s", error)
    return PumpEnd.PLAIN_CLOSED


def _receive(plain: socket.socket, channel: Channel, traffic: Traffic, watch: int) -> PumpEnd:
    view = memoryview(bytearray(BLOCK))
    try:
        while count := channel.read_into(view):
            if not _deliver(plain, view[:count], channel, watch):
                return PumpEnd.STOPPED if channel.closed else PumpEnd.CUT
            traffic.from_peer += count
    except ChannelError as error:
        return _reason(channel, error)
    except OSError as error:
        log.debug("the local program's connection broke: %s", error)
        return PumpEnd.PLAIN_CLOSED
    return PumpEnd.PEER_CLOSED


def _deliver(plain: socket.socket, view: memoryview, channel: Channel, watch: int) -> bool:
    """Send all of `view` to the local program, however long it takes to read; False when the peer has gone meanwhile.

    A server that hangs reads nothing for ever, and while we wait for it nobody reads
    the channel. So the wait looks at both: at `watch`, the channel's socket, for its end.
    What came before a clean end is delivered, if it is read at all; a reset is none.
    """
    patience: float | None = None
    while view:
        try:
            view = view[plain.send(view, socket.MSG_DONTWAIT) :]
            continue
        except BlockingIOError:
            pass
        poll = select.poll()
        poll.register(plain, select.POLLOUT)
        poll.register(watch, select.POLLRDHUP if patience is None else 0)  # a reset is told unasked
        ready = dict(poll.poll(patience))
        if plain.fileno() not in ready:
            if channel.closed or patience is not None or ready[watch] & select.POLLERR:
                return False
            patience = UNREAD_LIMIT * 1000
    return True


def _reason(channel: Channel, error: ChannelError) -> PumpEnd:
    if channel.closed:
        return PumpEnd.STOPPED
    log.debug("the tunnel broke: %s", error)
    return PumpEnd.CUT if isinstance(error, ChannelCut) else PumpEnd.ERROR


def _wake(plain: socket.socket) -> None:
    """Free whoever reads from `plain` or writes to it; what was written still arrives."""
    with suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)
