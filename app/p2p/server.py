"""What the relay needs of an rpc-server, whoever runs it: its state, and a way to dial it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.errors import WorkerError
from app.p2p.frames import MAX_NAME, MAX_TEXT, Device
from app.p2p.records import clean
from app.p2p.rpc import DeviceName, Probe

CHECK_LIMIT = 3.0
"""Seconds to answer when a client has gone. A killed prompt leaves the server computing: 2.7 s were seen."""


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


ServerState = Starting | Ready | Down | Failed
OnChange = Callable[[ServerState], None]
"""Called with every new state, one call at a time, from any thread; it must return soon and not call the server."""


class RpcServer(Protocol):
    """A server of one client at a time, watched from `start` to `stop`. Any thread may call any method."""

    @property
    def state(self) -> ServerState:
        """The newest state."""

    def start(self) -> None:
        """Begin to watch; what becomes of it is told by the state."""

    def dial(self, timeout: float) -> socket.socket:
        """A blocking connection to the server; raises `OSError` when there is none within `timeout` seconds."""

    def check_after_lease(self) -> bool:
        """Whether the server is there for its next client, within about `CHECK_LIMIT`.

        Call it when no connection to the server is open: while it computes for a client that has gone it
        answers nobody, and its state is per connection. After False it will be `Ready` again, or `Failed`.
        """

    def stop(self) -> None:
        """End the watching, and the server where we run it."""


def describe(probe: Probe, names: Sequence[DeviceName | Device]) -> Ready:
    """The state of a server that has answered; devices beyond `names` are numbered."""
    devices = []
    for number, memory in enumerate(probe.memory):
        known = names[number] if number < len(names) else DeviceName(f"device{number}", "")
        devices.append(
            Device(clean(known.name, MAX_NAME), clean(known.description, MAX_TEXT), memory.total, memory.free)
        )
    return Ready(tuple(devices), probe.protocol)
