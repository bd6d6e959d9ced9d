"""Stand-ins for rpc-server, and looking at processes until something is so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from app.launch import ServerCommand

HANG_GUARD = 30.0
"""Seconds after which a test is taken to hang."""


def shell(script: str) -> ServerCommand:
    """A stand-in for rpc-server where the test is about how a program ends or what it is given."""
    return ServerCommand(["/bin/bash", "-c", script, "stand-in"], {"PATH": os.defpath}, Path("/"))


def is_gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_GUARD
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
