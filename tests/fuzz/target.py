"""What a fuzz target is, and what counts as a finding besides what it raises."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import ExitCode, WorkerError
from app.p2p.worker import _log_unraisable

MAX_MESSAGE = 1000
"""Characters of an error: it is one line for a person."""


@dataclass(frozen=True)
class Target:
    """One reader of bytes."""

    read: Callable[[bytes], bool]
    """Whether it took the bytes for what they should be."""
    seeds: Callable[[], list[bytes]]
    """Valid inputs, from which the invalid ones are made."""

    def __call__(self, data: bytes) -> bool:
        """Let it read `data`; raises whatever is a finding."""
        with _no_traceback():
            return self.read(data)


class _Tracebacks(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


@contextmanager
def _no_traceback() -> Iterator[None]:
    """Also what was only logged, or ended a thread, is raised."""
    log, seen = logging.getLogger("app"), _Tracebacks()
    hooks = threading.excepthook, sys.unraisablehook
    log.addHandler(seen)
    threading.excepthook = lambda broken: seen.errors.append(broken.exc_value or SystemExit())
    sys.unraisablehook = _log_unraisable  # as the worker does it
    try:
        yield
    finally:
        log.removeHandler(seen)
        threading.excepthook, sys.unraisablehook = hooks
    if seen.errors:
        raise AssertionError("a traceback for the user") from seen.errors[0]


@contextmanager
def told_to_the_user(*codes: ExitCode) -> Iterator[None]:
    """A WorkerError is fine when it is one readable line with a remedy."""
    try:
        yield
    except WorkerError as error:
        assert error.code in codes, error
        assert error.hint
        assert len(error.message) <= MAX_MESSAGE
        assert all(text.isprintable() for text in (error.message, error.hint)), error
