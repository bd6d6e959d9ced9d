"""Reads what rpc-server prints: passes it on line by line and keeps the end of it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from app.console import printable

KEPT_LINES = 200
"""Enough for the list of devices to be among them when the first client is served."""
MAX_LINE = 4096
"""Bytes; a longer line is broken."""


class ServerOutput:
    """The output of one run, from a thread of its own, so that a reader of ours that stalls stalls nothing else."""

    def __init__(self, descriptor: int, echo: Callable[[str], None]) -> None:
        """Take over the read end `descriptor` of the server's pipe; `echo` gets every line, without its end."""
        self._descriptor = descriptor
        self._echo = echo
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="server output", daemon=True)
        self._thread.start()

    def wait_until(self, satisfied: Callable[[list[str]], bool], limit: float) -> list[str]:
        """The lines kept, once they satisfy or `limit` seconds have passed."""
        with self._grown:
            self._grown.wait_for(lambda: satisfied(list(self._lines)), limit)
            return list(self._lines)

    def wait_for_end(self, limit: float) -> list[str]:
        """The lines kept when the server has closed its end, or `limit` seconds have passed."""
        self._thread.join(limit)
        with self._grown:
            return list(self._lines)

    def _read(self) -> None:
        with os.fdopen(self._descriptor, "rb") as pipe:
            while raw := pipe.readline(MAX_LINE):
                line = printable(raw.decode(errors="replace").rstrip("\r\n"))
                with self._grown:
                    self._lines.append(line)
                    self._grown.notify_all()
                with suppress(OSError, ValueError):  # our stdout may be closed; the server's pipe must be emptied
                    self._echo(line)
