"""Bytes both ways between a plain socket and a channel: the hot path."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from threading import Thread

from app.p2p.channel import BLOCK, Channel, ChannelCut, ChannelError

log = logging.getLogger(__name__)


class PumpEnd(Enum):
    """Why a tunnel ended; the value is for the log."""

    PEER_CLOSED = "closed by the other side"
    PLAIN_CLOSED = "closed by the local program"
    STOPPED = "closed by us"
    CUT = "cut off"
    ERROR = "broken: what arrived was not what was sent"


@dataclass(slots=True)
class Traffic:
    """Bytes that one tunnel has moved so far. One thread writes each, any may read."""

    to_peer: int = 0
    from_peer: int = 0


def pump(plain: socket.socket, channel: Channel, traffic: Traffic) -> PumpEnd:
    """Move bytes both ways until either side ends, close both, and say which end came first.

    An end on one side is the end of the tunnel, not half of it: llama.cpp closes
    its sockets whole, and Python's ssl cannot read on after it has said goodbye.
    What was received before a clean end is delivered. Whoever does not read
    holds up the other: at most two blocks a direction wait in here.
    `channel.close()` from another thread stops it.
    """
    ends: list[PumpEnd] = []  # the first to append is the reason
    plain.settimeout(None)

    def send() -> None:
        end = _to_peer(plain, channel, traffic)
        ends.append(end)
        if end is PumpEnd.PLAIN_CLOSED:
            channel.close()
        _wake(plain)

    sender = Thread(target=send, name="pump", daemon=True)
    sender.start()
    ends.append(_from_peer(plain, channel, traffic))
    channel.close()
    _wake(plain)
    sender.join()
    plain.close()
    if ends[0] is PumpEnd.CUT and PumpEnd.PEER_CLOSED in ends:
        return PumpEnd.PEER_CLOSED  # writing to a peer that has closed fails before its goodbye is read
    return ends[0]


def _to_peer(plain: socket.socket, channel: Channel, traffic: Traffic) -> PumpEnd:
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


def _from_peer(plain: socket.socket, channel: Channel, traffic: Traffic) -> PumpEnd:
    view = memoryview(bytearray(BLOCK))
    try:
        while count := channel.read_into(view):
            plain.sendall(view[:count])
            traffic.from_peer += count
    except ChannelError as error:
        return _reason(channel, error)
    except OSError as error:
        log.debug("the local program's connection broke: %s", error)
        return PumpEnd.PLAIN_CLOSED
    return PumpEnd.PEER_CLOSED


def _reason(channel: Channel, error: ChannelError) -> PumpEnd:
    if channel.closed:
        return PumpEnd.STOPPED
    log.debug("tunnel: %s", error)
    return PumpEnd.CUT if isinstance(error, ChannelCut) else PumpEnd.ERROR


def _wake(plain: socket.socket) -> None:
    with suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)
