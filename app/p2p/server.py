"""What the relay needs of an rpc-server, whoever runs it: its state, and a way to dial it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.errors import WorkerError
from app.p2p.frames import Device


@dataclass(frozen=True)
class Starting:
    """It has been started and has not answered yet."""


@dataclass(frozen=True)
class Ready:
    """It answers."""

    devices: tuple[Device, ...]
    """Memory as of when the server was last idle."""
    protocol: str
    """Its RPC protocol, such as `7.0.0`."""


@dataclass(frozen=True)
class Down:
    """It does not answer; it is being started again."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """Nothing more will be tried."""

    error: WorkerError


State = Starting | Ready | Down | Failed
OnChange = Callable[[State], None]
"""Called with every new state, one call at a time, from any thread; it must return soon and not call the server."""


class Server(Protocol):
    """A server of one client at a time, watched from `start` to `stop`."""

    @property
    def state(self) -> State:
        """The newest state."""

    def start(self) -> None:
        """Begin; what becomes of it is told by the state."""

    def dial(self, timeout: float) -> socket.socket:
        """A connection to the server, blocking; raises `OSError` when there is none within `timeout` seconds."""

    def check_after_lease(self) -> bool:
        """Whether the server is ready for its next client; if not, wait for it to be `Ready` again.

        Takes 3 s at most (a little more to kill the server). No lease may be held.
        """

    def stop(self) -> None:
        """End the watching, and the server if we run it."""
