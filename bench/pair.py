"""The two relays of one peer, running, and what the modules that start them share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from bench.processes import Program, Usage, usage

_SBIN = "/usr/sbin"
"""Where Debian keeps haproxy and sshd; seldom in a user's PATH."""


@dataclass(frozen=True)
class Pair:
    """`port` is where a client connects on loopback."""

    port: int
    client_side: tuple[Program, ...] = ()
    server_side: tuple[Program, ...] = ()

    @property
    def cpu(self) -> float:
        """Seconds of processor time that both sides have used so far."""
        return sum(side.cpu for side in self.sides)

    @property
    def sides(self) -> tuple[Usage, Usage]:
        """The client's and the server's."""
        near, far = ((one.process.pid for one in side) for side in (self.client_side, self.server_side))
        return usage(*near), usage(*far)


def find(program: str) -> str | None:
    """The full path of `program`; sshd insists on being called by it."""
    return shutil.which(program) or shutil.which(program, path=_SBIN)
