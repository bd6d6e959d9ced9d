"""Keeps rpc-server's `-c` cache whole and small enough.

rpc-server writes a tensor under its final name, looks at no error, and never checks what it reads back: a file
cut short by a kill or a full disk becomes wrong tokens with status 0. So a file is trusted once the server has
answered with no client on it, for it writes while it serves one, or once its content has had the hash that is its
name. A mark in the cache, locked while this worker lives, names the files that were there at its start: what a killed
worker leaves besides is in doubt. What is in doubt is hashed before the server is started again, and what is not
whole is thrown away.

A server that was taken over can plant anything there. So no link is followed, nothing is waited for, memory is
bounded, what cannot be read or removed is passed over, and what none of us writes is removed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.cache.directory import (
    ENTRY,
    LITTLE,
    check_safe,
    entries,
    found,
    make_room,
    room,
    shrink,
    spare_room,
    sweep,
)
from app.directories import make_private
from app.errors import WorkerError
from app.options import DEFAULT_CACHE_SIZE
from app.p2p import cache_mark

LOOK_INTERVAL = 2.0
"""Seconds between looks whether the disk has room left, while the server runs."""
_CLOSE_LIMIT = 1.0
"""Seconds to wait for a check that is going on when the worker ends; the next start takes it up."""
_TOGETHER = 1.0
"""Seconds within which it is not certain which of two files was written first."""

Whole = Callable[[Path, Collection[str]], set[str]]
"""Those files of a directory whose content has the hash that is their name."""

log = logging.getLogger(__name__)


class ServerCache:
    """The cache of one worker's server. A cache that cannot be looked after is a warning; nothing raises."""

    def __init__(self, max_size: int = DEFAULT_CACHE_SIZE, whole: Whole = lambda _directory, _names: set()) -> None:
        """`max_size`: bytes that it may have when the server is idle. `whole` may take its time."""
        self._max_size = max_size
        self._whole = whole
        self._directory: Path | None = None
        self._mark: int | None = None
        self._mark_name = cache_mark.new_name()
        self._trusted: set[str] = set()
        self._marked: set[str] = set()
        """What our mark names: trusted since the start, and there ever since."""
        self._short = False
        """Whether the disk has been full since `settled`."""
        self._told = False
        """Whether it was said that others fill the disk."""
        self._busy = threading.Lock()
        self._closed = threading.Event()

    def begin(self, directory: Path | None) -> None:
        """Before every start of the server, when the last one has ended. `directory`: of `cache_directory`."""
        if directory is None:
            return
        with self._busy, _warned(directory):
            if self._directory is None:
                make_private(directory)
                check_safe(directory)
                sweep(directory)
                shrink(directory, self._max_size)  # before the marks: it bounds what has to be hashed
                self._sweep_marks(directory)
                self._trusted = _names(directory)
                self._directory = directory
                threading.Thread(target=self._watch, args=(directory,), name="cache", daemon=True).start()
            else:
                sweep(directory)
            self._discard(directory, self._trusted)
            self._shrink(directory)
            if self._mark is None:  # without one, only a kill of this worker goes unseen
                self._marked = set(self._trusted)
                self._mark = cache_mark.make(directory, self._mark_name, self._marked)

    def settled(self) -> None:
        """The server has answered while no client was on it: what it has written is whole, if there was room."""
        if self._directory is None:
            return
        directory = self._directory
        with self._busy, _warned(directory):
            sweep(directory)
            self._sweep_marks(directory)
            if self._short or room(directory) < LITTLE:
                self._discard(directory, self._trusted)
            else:
                self._trusted = _names(directory)
            self._short = False
            self._shrink(directory)

    def close(self) -> None:
        """The server has ended and will not be started again. What may be cut goes at once, for others may read it;
        what else is in doubt is left to the next start.
        """
        self._closed.set()
        if self._directory is not None and self._busy.acquire(timeout=_CLOSE_LIMIT):
            directory = self._directory
            with _warned(directory):
                _remove(directory, self._last_written(directory))
                if _names(directory) <= self._trusted:
                    _remove(directory, [self._mark_name])
            self._busy.release()
        if self._mark is not None:
            os.close(self._mark)
        self._directory = self._mark = None

    def _last_written(self, directory: Path) -> list[str]:
        """Of what is in doubt, what may be cut: the server writes one file after the other, so where there was room
        that is the last one.
        """
        doubtful = [entry for entry in entries(directory) if entry.name not in self._trusted]
        if self._short or room(directory) < LITTLE:
            return [entry.name for entry in doubtful]
        newest = max((entry.written for entry in doubtful), default=0.0)
        return [entry.name for entry in doubtful if entry.written > newest - _TOGETHER]

    def _watch(self, directory: Path) -> None:
        """While the server writes only the disk's room counts: a model that is larger than the cache would lose what it
        is about to ask for.
        """
        while not self._closed.wait(LOOK_INTERVAL):
            with self._busy, suppress(OSError):  # told by the others
                self._short = self._short or room(directory) < LITTLE
                if gone := make_room(directory):
                    log.info("%d file(s) of %s were removed: the disk gets full", len(gone), directory)
                self._forget_removed(directory)
                if not self._told and spare_room(directory) < 0 and not self._trusted and not _names(directory):
                    self._told = True
                    log.warning("the disk of %s is nearly full although the cache is empty", directory)

    def _shrink(self, directory: Path) -> None:
        if gone := shrink(directory, self._max_size):
            log.info("%d file(s) of %s were removed: it had become too large", len(gone), directory)
        self._forget_removed(directory)

    def _forget_removed(self, directory: Path) -> None:
        """What is gone, whoever removed it, may be written again, and in part."""
        self._trusted &= _names(directory)
        if self._mark is not None and not self._marked <= self._trusted:
            self._marked &= self._trusted
            old, self._mark = self._mark, cache_mark.make(directory, self._mark_name, self._marked)
            os.close(old)

    def _sweep_marks(self, directory: Path) -> None:
        """Look at what workers that were killed had not seen whole; a mark goes when that has been done."""
        dead, vouched = cache_mark.dead(directory, but=self._mark_name)
        if dead and self._discard(directory, vouched):
            _remove(directory, dead)

    def _discard(self, directory: Path, trusted: set[str]) -> bool:
        """Remove what is neither `trusted` nor whole, and what is no plain file: a link would be written through.

        False if something of it is still there. What was found whole is trusted from now on.
        """
        plain = {entry.name: entry.is_file(follow_symlinks=False) for entry in found(directory, ENTRY)}
        doubtful = [name for name, is_plain in plain.items() if is_plain and name not in trusted]
        if doubtful:
            log.info("%d file(s) of %s are checked: the server may have been cut short", len(doubtful), directory)
        whole = self._whole(directory, doubtful) if doubtful else set()
        self._trusted |= whole
        rejected = [name for name, is_plain in plain.items() if not is_plain or name not in trusted | whole]
        removed = _remove(directory, rejected)
        if removed:
            log.info("%d file(s) of %s were thrown away: they may not be whole", removed, directory)
        return removed == len(rejected)


def _names(directory: Path) -> set[str]:
    return {entry.name for entry in found(directory, ENTRY)}


def _remove(directory: Path, names: Iterable[str]) -> int:
    """How many are gone. One that stays must not keep the others, and is one warning with all like it."""
    gone, failed = 0, None
    for name in names:
        try:
            (directory / name).unlink(missing_ok=True)
            gone += 1
        except OSError as error:
            failed = error
    if failed is not None:
        _warn(directory, failed)
    return gone


def _warn(directory: Path, error: OSError) -> None:
    log.warning("cannot look after the cache in %s: %s", directory, (error.strerror or str(error)).lower())


@contextmanager
def _warned(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _warn(directory, error)
    except WorkerError as error:
        log.warning("the cache is not looked after: %s", error)
