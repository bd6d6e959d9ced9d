"""Logging, and the two lines of an error."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

TRACE = 5
"""One below DEBUG, for what happens on every connection."""

_LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}


def start_logging(level: str, stream: TextIO | None = None) -> None:
    """Send the log to `stream` (default: stderr) from `level` of `options.LOG_LEVELS` on.

    stdout stays free for what a program reads.
    """
    logging.addLevelName(TRACE, "TRACE")
    logging.addLevelName(logging.WARNING, "WARN")
    logging.basicConfig(
        level=_LEVELS[level],
        format="%(asctime)s %(levelname)-5s %(message)s",
        datefmt="%H:%M:%S",
        stream=stream or sys.stderr,
        force=True,
    )


def print_error(message: str, hint: str) -> None:
    """`error: ...` and, where there is a remedy, `hint: ...`."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
