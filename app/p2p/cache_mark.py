"""A worker's mark in the cache of its server: which files were whole when it started, should it be killed.

A mark is locked while its worker lives. A server that was taken over can plant marks as well: none is waited for, and
memory is bounded.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from app.cache.directory import ENTRY, MARK, MAX_NAMES, found
from app.directories import opened

_MAX_MARK = 17 * MAX_NAMES
"""Bytes of a mark: a line for each name. A larger one is none of a worker's, and vouches for nothing."""
_MAX_MARKS = 64
"""Killed workers whose marks are read at a time; where there are more, none vouches for anything."""
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

log = logging.getLogger(__name__)


def new_name() -> str:
    """That no other worker has."""
    return f".worker-{secrets.token_hex(8)}"


def make(directory: Path, mark: str, names: Iterable[str]) -> int:
    """A mark that vouches for `names`, in place of one that is there; it lasts as long as what is returned is open."""
    fresh = directory / f"{mark}.new"  # under its own name it must be locked and whole
    file = os.open(fresh, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.fdopen(file, "w", closefd=False) as text:
            text.write("".join(f"{name}\n" for name in sorted(names)))
        fresh.rename(directory / mark)
    except BaseException:
        os.close(file)
        with suppress(OSError):
            fresh.unlink()
        raise
    return file


def dead(directory: Path, *, but: str) -> tuple[list[str], set[str]]:
    """The marks of workers that were killed, and the files that all of them name.

    A mark that is still being made, and so not locked yet, is among them at worst: its worker then goes without.
    """
    marks: list[str] = []
    vouched: set[str] = set()
    for mark in found(directory, MARK):
        if mark.name == but or not mark.is_file(follow_symlinks=False):
            continue
        try:
            names = _vouched(directory / mark.name, read=len(marks) < _MAX_MARKS)
        except (FileNotFoundError, BlockingIOError):  # another one has swept it, or its worker lives
            continue
        except OSError as error:
            log.warning("cannot read %s: %s", directory / mark.name, (error.strerror or str(error)).lower())
            continue
        vouched = vouched & names if marks else names
        marks.append(mark.name)
    return marks, vouched


def _vouched(mark: Path, *, read: bool) -> set[str]:
    """What a dead worker's mark names. Raises BlockingIOError if the worker lives, or if it is a FIFO."""
    with opened(os.open(mark, _OPEN)) as file:
        if os.fstat(file).st_size > _MAX_MARK:  # whoever locks it
            return set()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = os.read(file, _MAX_MARK) if read else b""
    return set(ENTRY.findall(content.decode("ascii", "replace")))
