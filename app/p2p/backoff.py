"""How long to wait before something that ended is started again. No I/O."""

from __future__ import annotations

MAX_DELAY = 30.0
"""Seconds that no wait is longer than."""
STEADY = 60.0
"""Seconds of being well after which an end counts as the first one again."""


class Backoff:
    """Each wait is twice as long as the last one."""

    def __init__(self, first: float) -> None:
        """`first`: seconds of the first wait."""
        self._first = first
        self._next = first

    def after(self, well: float | None) -> float:
        """Seconds to wait after an end; `well` seconds it had been so before, None for not at all."""
        delay = self._first if well is not None and well >= STEADY else self._next
        self._next = min(2 * delay, MAX_DELAY)
        return delay
