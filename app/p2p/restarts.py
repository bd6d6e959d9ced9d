"""Decides whether llama-server is started again, and when. No I/O: told of what happens, with a clock passed in."""

from __future__ import annotations

from collections.abc import Callable

from app.p2p.backoff import Backoff

FIRST_DELAY = 1.0
"""Seconds before a start that follows an end."""


class Restarts:
    """The starts and ends of one `serve`."""

    def __init__(self, enabled: bool, clock: Callable[[], float]) -> None:
        """`enabled`: not `--no-restart`."""
        self._enabled = enabled
        self._clock = clock
        self._backoff = Backoff(FIRST_DELAY)
        self._ready_since: float | None = None
        self._proven = False

    def ready(self) -> None:
        """The newest start has succeeded."""
        self._ready_since = self._clock()
        self._proven = True

    def ended(self, status: int, *, lost_worker: bool) -> float | None:
        """Seconds until the next start; None when this end is the last one.

        `status` as `subprocess` has it. An end that no worker is to blame for is started again after when the
        arguments have proved to be good, by a start that succeeded, and when it was no end in order.
        """
        since, self._ready_since = self._ready_since, None
        if not self._enabled or not (lost_worker or (self._proven and status != 0)):
            return None
        return self._backoff.after(None if since is None else self._clock() - since)
