"""Typed messages over a channel: what relay and head both do before and beside the raw bytes."""

from __future__ import annotations

import time
from typing import TypeVar

from app.p2p.channel import Channel
from app.p2p.frames import Decoder, Message, encode

_BLOCK = 4096

MessageT = TypeVar("MessageT", bound=Message)


class PeerClosed(Exception):
    """The peer said goodbye instead of another message."""


class Conversation:
    """One thread receives, any thread sends."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._decoder = Decoder()

    def send(self, message: Message) -> None:
        """Send one message whole. Raises ChannelError."""
        self.channel.write(encode(message))

    def receive(self, *expected: type[MessageT], timeout: float) -> MessageT:
        """The next message, which must be one of `expected`.

        Raises TimeoutError when it is not there within `timeout` seconds (it may
        be tried again), PeerClosed, PeerError for what may not come now, ChannelError.
        """
        deadline = time.monotonic() + timeout
        while (message := self._decoder.next(*expected)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            data = self.channel.read(_BLOCK, left)
            if not data:
                raise PeerClosed
            self._decoder.feed(data)
        return message

    def rest(self) -> bytes:
        """What came behind the last message: on a data connection the first bytes of the tunnel."""
        return self._decoder.rest()
