"""What the main thread of a head waits for."""

from __future__ import annotations

from collections import deque
from threading import Condition

from app.p2p.roster import Change, News
from app.p2p.signals import Arrived


class Events:
    """All that the main thread waits for. What no worker's chatter can keep from it: signals, and its deadlines."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._signals: deque[Arrived] = deque()
        self._others: dict[object, object] = {}
        """By what a later event makes needless."""

    def put(self, event: object) -> None:
        """Take note, from any thread. Of a worker's statuses only the newest one is kept."""
        with self._changed:
            if isinstance(event, Arrived):
                self._signals.append(event)
            else:
                matter = _matter(event)
                self._others.pop(matter, None)  # so that it stands behind what came since
                self._others[matter] = event
            self._changed.notify()

    def next(self, timeout: float | None) -> object:
        """A signal, else the oldest event; None when none comes within `timeout` seconds, or those are over."""
        if timeout is not None and timeout <= 0:
            return None
        with self._changed:
            if not self._changed.wait_for(lambda: self._signals or self._others, timeout):
                return None
            if self._signals:
                return self._signals.popleft()
            return self._others.pop(next(iter(self._others)))


def _matter(event: object) -> object:
    """Equal for two events of which the later one says it all."""
    if isinstance(event, Change) and event.news in (News.CHANGED, News.TRIED):
        return event.news, event.worker and event.worker.place
    return object()
