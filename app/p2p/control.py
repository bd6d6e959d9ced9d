"""The worker's end of a head's control connection: the counterpart of `link`."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

from app.p2p.channel import ChannelError
from app.p2p.conversation import Conversation
from app.p2p.frames import PING_INTERVAL, SILENCE_LIMIT, Bye, Hello, Ping, Pong
from app.p2p.lender import Lender


class ControlConnection:
    """One head's control connection: its thread listens, a second one tells what changes."""

    def __init__(self, talk: Conversation, lender: Lender) -> None:
        self._talk = talk
        self._lender = lender

    def start(self, hello: Hello) -> None:
        """Say hello and keep the head informed."""
        seen = self._lender.wait_for_change(-1, 0)
        self._talk.send(hello)
        Thread(target=self._inform, args=(seen,), name="inform", daemon=True).start()

    def listen(self) -> None:
        """Until the head leaves, or is silent for too long. Raises as `Conversation.receive`."""
        while True:
            message = self._talk.receive(Ping, Pong, Bye, timeout=SILENCE_LIMIT)
            if isinstance(message, Bye):
                return
            if isinstance(message, Ping):
                self._talk.send(Pong())

    def say_bye(self, reason: str) -> None:
        """The worker ends this connection on purpose."""
        with suppress(ChannelError):
            self._talk.send(Bye(reason))
        self._talk.channel.close()

    def _inform(self, seen: int) -> None:
        with suppress(ChannelError):  # the listening thread notices too, and tells
            while not self._talk.channel.closed:
                now = self._lender.wait_for_change(seen, PING_INTERVAL)
                self._talk.send(Ping() if now == seen else self._lender.status())
                seen = now
