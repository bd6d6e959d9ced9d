"""SIGINT and SIGTERM as one wish to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

SAME = 0.5
"""Seconds in which a second signal is the same one: Ctrl-C reaches a onefile program twice within a
millisecond, from the terminal and from the bootloader."""


def on_interrupt(stop: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
    """Call `stop` at the first SIGINT or SIGTERM; end the process at once when the user insists.

    `stop` runs inside whatever the main thread does: it may only set or put something.
    """
    first: list[float] = []

    def handle(number: int, _: FrameType | None) -> None:
        if not first:
            first.append(clock())
            stop()
        elif clock() - first[0] > SAME:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
