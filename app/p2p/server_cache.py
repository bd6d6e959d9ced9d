"""Throws away what rpc-server's `-c` cache may hold in part.

rpc-server writes a tensor under its final name, looks at no error, and never checks what it reads back: a file
cut short by a kill or a full disk becomes wrong tokens with status 0. So a file is trusted only once the server has
answered with no client on it, for it writes while it serves one. A mark in the cache, locked while this worker
lives, names the files that were there at its start: what a killed worker leaves besides is not trusted either.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LITTLE = 64 * 1024 * 1024
"""Bytes left on the disk below which a file may have been cut short: one tensor is larger than 10 MiB."""

_FLAGS = ("-c", "--cache")
_ENTRY = re.compile(r"[0-9a-f]{16}")
"""How rpc-server names a tensor: by its FNV hash (`set_tensor` in ggml-rpc.cpp)."""
_MARK = re.compile(r"\.worker-[0-9a-f]{16}")
_MAX_MARK = 64 * 1024 * 1024
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
        self._directory = Path()
        self._mark: int | None = None
        self._mark_name = f".worker-{secrets.token_hex(8)}"
        self._trusted: set[str] = set()

    def begin(self, directory: Path | None) -> None:
        """Before every start of the server, when the last one has ended. `directory`: of `cache_directory`."""
        if directory is None:
            return
        self._directory = directory
        with _warned(self._directory):
            if self._mark is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._sweep()
                self._trusted = self._entries()
                self._mark = self._make_mark()
            else:
                self._discard(self._trusted)

    def settled(self) -> None:
        """The server has answered while no client was on it: what it has written is whole, if there was room."""
        if self._mark is None:
            return
        with _warned(self._directory):
            self._sweep()
            if _room(self._directory) < LITTLE:
                self._discard(self._trusted)
            self._trusted = self._entries()

    def close(self) -> None:
        """The server has ended and will not be started again."""
        if self._mark is None:
            return
        with _warned(self._directory):
            self._discard(self._trusted)
            (self._directory / self._mark_name).unlink(missing_ok=True)
        os.close(self._mark)
        self._mark = None

    def _make_mark(self) -> int:
        fresh = self._directory / f"{self._mark_name}.new"  # under its own name it must be locked and whole
        mark = os.open(fresh, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX)
            with os.fdopen(mark, "w", closefd=False) as text:
                text.write("".join(f"{name}\n" for name in sorted(self._trusted)))
            fresh.rename(self._directory / self._mark_name)
        except BaseException:
            os.close(mark)
            raise
        return mark

    def _sweep(self) -> None:
        """Throw away what workers that were killed had not seen whole. An unreadable mark vouches for nothing."""
        for path in self._directory.iterdir():
            if not _MARK.fullmatch(path.name) or path.name == self._mark_name:
                continue
            with suppress(FileNotFoundError, BlockingIOError):  # another one sweeps, or its worker lives
                if not stat.S_ISREG(path.lstat().st_mode):
                    continue
                with os.fdopen(os.open(path, _OPEN), encoding="ascii", errors="replace") as text:
                    fcntl.flock(text, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._discard(set(text.read(_MAX_MARK).split()))
                    path.unlink(missing_ok=True)

    def _entries(self) -> set[str]:
        return {path.name for path in self._directory.iterdir() if _ENTRY.fullmatch(path.name)}

    def _discard(self, trusted: set[str]) -> None:
        doubtful = self._entries() - trusted
        for name in doubtful:
            (self._directory / name).unlink(missing_ok=True)
        if doubtful:
            log.info("%d file(s) of %s were thrown away: they may not be whole", len(doubtful), self._directory)


@contextmanager
def _warned(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("cannot look after the cache in %s: %s", directory, (error.strerror or str(error)).lower())


def _room(directory: Path) -> int:
    """Bytes that we can still write there; what is kept for root counts for root."""
    disk = os.statvfs(directory)
    return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize
