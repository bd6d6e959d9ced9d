"""Throws away what rpc-server's `-c` cache may hold in part.

rpc-server writes a tensor under its final name, looks at no error, and never checks what it reads back: a file
cut short by a kill or a full disk becomes wrong tokens with status 0. So a file is trusted only once the server has
answered with no client on it, for it writes while it serves one. A mark in the cache, locked while this worker
lives, names the files that were there at its start: what a killed worker leaves besides is not trusted either.

A server that was taken over can plant anything there. So no link is followed, nothing is waited for, memory is
bounded, and what cannot be read or removed is passed over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.directories import make_private

LITTLE = 64 * 1024 * 1024
"""Bytes left on the disk below which a file may have been cut short: one tensor is larger than 10 MiB."""

_FLAGS = ("-c", "--cache")
_ENTRY = re.compile(r"[0-9a-f]{16}")
"""How rpc-server names a tensor: by its FNV hash (`set_tensor` in ggml-rpc.cpp)."""
_MARK = re.compile(r"\.worker-[0-9a-f]{16}")
_MAX_MARK = 1 << 20
"""Bytes of a mark, some 60,000 tensors; a larger one vouches for nothing."""
_MAX_MARKS = 64
"""Killed workers whose marks are read at a time; where there are more, none vouches for anything."""
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

log = logging.getLogger(__name__)


def cache_directory(arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Where a server with these arguments and environment caches (rpc-server.cpp); None where it does not."""
    if not set(_FLAGS) & set(arguments):
        return None
    if environ.get("LLAMA_CACHE"):
        return Path(environ["LLAMA_CACHE"], "rpc")
    home = environ.get("HOME") or Path.home()
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "llama.cpp", "rpc")


class ServerCache:
    """The cache of one worker's server. A cache that cannot be looked after is a warning; nothing raises."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._mark: int | None = None
        self._mark_name = f".worker-{secrets.token_hex(8)}"
        self._trusted: set[str] = set()

    def begin(self, directory: Path | None) -> None:
        """Before every start of the server, when the last one has ended. `directory`: of `cache_directory`."""
        if directory is None:
            return
        with _warned(directory):
            if self._directory is None:
                make_private(directory)
                _sweep(directory, self._mark_name)
                self._trusted = _entries(directory)
                self._directory = directory
            _discard(self._directory, self._trusted)
            if self._mark is None:  # without one, only a kill of this worker goes unseen
                self._mark = self._make_mark(self._directory)

    def settled(self) -> None:
        """The server has answered while no client was on it: what it has written is whole, if there was room."""
        if self._directory is None:
            return
        with _warned(self._directory):
            _sweep(self._directory, self._mark_name)
            if _room(self._directory) < LITTLE:
                _discard(self._directory, self._trusted)
            else:
                self._trusted = _entries(self._directory)

    def close(self) -> None:
        """The server has ended and will not be started again."""
        if self._directory is not None:
            with _warned(self._directory):
                if _discard(self._directory, self._trusted):
                    _remove(self._directory, [self._mark_name])
        if self._mark is not None:
            os.close(self._mark)
        self._directory = self._mark = None

    def _make_mark(self, directory: Path) -> int:
        fresh = directory / f"{self._mark_name}.new"  # under its own name it must be locked and whole
        mark = os.open(fresh, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(mark, "w", closefd=False) as text:
                text.write("".join(f"{name}\n" for name in sorted(self._trusted)))
            fresh.rename(directory / self._mark_name)
        except BaseException:
            os.close(mark)
            with suppress(OSError):
                fresh.unlink()
            raise
        return mark


def _sweep(directory: Path, own_mark: str) -> None:
    """Throw away what workers that were killed had not seen whole; a mark goes when that has been done."""
    dead: list[str] = []
    vouched: set[str] = set()
    for mark in _found(directory, _MARK):
        if mark.name == own_mark or not mark.is_file(follow_symlinks=False):
            continue
        try:
            names = _vouched(directory / mark.name, read=len(dead) < _MAX_MARKS)
        except (FileNotFoundError, BlockingIOError):  # another one has swept it, or its worker lives
            continue
        except OSError as error:
            _warn(directory, error)
            continue
        vouched = vouched & names if dead else names
        dead.append(mark.name)
    if dead and _discard(directory, vouched):
        _remove(directory, dead)


def _vouched(mark: Path, *, read: bool) -> set[str]:
    """What a dead worker's mark names. Raises BlockingIOError if the worker lives, or if it is a FIFO."""
    file = os.open(mark, _OPEN)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = os.read(file, _MAX_MARK + 1) if read else b""
    finally:
        os.close(file)
    if len(content) > _MAX_MARK:
        return set()
    return set(_ENTRY.findall(content.decode("ascii", "replace")))


def _found(directory: Path, name: re.Pattern[str]) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        return [entry for entry in found if name.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)]


def _entries(directory: Path) -> set[str]:
    return {entry.name for entry in _found(directory, _ENTRY)}


def _discard(directory: Path, trusted: set[str]) -> bool:
    """False if something is still there that is not trusted, or no plain file: a link would be written through."""
    doubtful = [
        entry.name
        for entry in _found(directory, _ENTRY)
        if entry.name not in trusted or not entry.is_file(follow_symlinks=False)
    ]
    removed = _remove(directory, doubtful)
    if removed:
        log.info("%d file(s) of %s were thrown away: they may not be whole", removed, directory)
    return removed == len(doubtful)


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


def _room(directory: Path) -> int:
    """Bytes that we can still write there; what is kept for root counts for root."""
    disk = os.statvfs(directory)
    return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize
