"""The directory of rpc-server's `-c` cache: where it is, what is in it, and what goes when it is too large.

A file is named by the hash of its content, and nothing else is known of it. A server that was taken over can write
here: no link is followed, what cannot be read or removed is passed over, and there is a limit to how much is looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from app.directories import UnsafeDirectory, check_owner, make_private, opened, remove
from app.errors import WorkerError

ENTRY = re.compile(r"[0-9a-f]{16}")
"""How rpc-server names a tensor: by its FNV hash (`set_tensor` in ggml-rpc.cpp)."""
FLAGS = ("-c", "--cache")
"""What makes rpc-server cache."""
LITTLE = 64 * 1024 * 1024
"""Bytes left on the disk below which a file may have been cut short: one tensor is larger than 10 MiB."""
MARK = re.compile(r"\.worker-[0-9a-f]{16}(\.new)?")
"""What a worker notes there (app/p2p/cache_mark.py)."""
MAX_NAMES = 65_536
"""Names that are looked at: of the files that a server writes 50 GB are 5,000 at most."""

_THRESHOLD = 10 * 1024 * 1024
"""Bytes; a tensor that is no larger is never cached (`HASH_THRESHOLD` in ggml-rpc.cpp)."""
_TEMPORARY = re.compile(r"\.add-[0-9]+")
"""What `worker cache add` has begun (native/cache.cpp)."""
_OTHERS_PART, _OTHERS_ENOUGH = 20, 4 << 30
"""A twentieth of the disk is left to others, and at most as many bytes."""

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A file of the cache. `used` and `written`: seconds of Unix time, as the file system tells."""

    used: float
    """When it was last read or written; most file systems note a reading once a day."""
    name: str
    bytes: int
    written: float


def cache_directory(arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Where a server with these arguments and environment caches (rpc-server.cpp); None where it does not."""
    return _directory(environ) if set(FLAGS) & set(arguments) else None


def own_directory(environ: Mapping[str, str]) -> Path:
    """Where a server that we start in `environ` caches. Raises `WorkerError` for a user without a home."""
    try:
        return _directory(environ).absolute()
    except RuntimeError:
        raise WorkerError("there is no place for a cache: this user has no home", "name one with LLAMA_CACHE") from None


def check_safe(directory: Path) -> None:
    """Raise `WorkerError` if another user could put weights there.

    Root trusts one other user: the one in whose home the cache is.
    """
    place = Path(os.path.realpath(directory))
    ways = [(way, way.stat()) for way in (place, *place.parents, *directory.absolute().parents) if way.exists()]
    others = {status.st_uid for _, status in ways} - {0}
    owner = min(others) if os.geteuid() == 0 and len(others) == 1 else None
    try:
        for way, status in ways:
            check_owner(status, way, sticky=way != place, owner=owner)
    except UnsafeDirectory as error:
        raise WorkerError(
            error.message, "let only the user of the cache write there, or name another place with LLAMA_CACHE"
        ) from None


def entries(directory: Path) -> list[Entry]:
    """The files of the cache, the one whose use is longest ago first; none where there is no cache."""
    files = []
    with contextlib.suppress(FileNotFoundError):
        for entry in found(directory, ENTRY):
            if entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                    status = entry.stat(follow_symlinks=False)
                    used = max(status.st_atime, status.st_mtime)
                    files.append(Entry(used, entry.name, status.st_size, status.st_mtime))
    return sorted(files)


def found(directory: Path, name: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """What has such a name there and is no directory."""
    for entry in _scan(directory):
        if name.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            yield entry


def sweep(directory: Path) -> None:
    """Remove what nobody writes there but a server that was taken over, and what a killed `cache add` has left.

    Raises `OSError` when `directory` cannot be read; what stays in it is a warning.
    """
    gone, failed, left = 0, None, False
    with opened(_open(directory)) as fd:
        for entry in _scan(directory):
            left = left or _TEMPORARY.fullmatch(entry.name) is not None
            try:
                gone += not _may_be_ours(entry) and remove(fd, entry.name)
            except OSError as error:
                failed = error
    if left:
        with contextlib.suppress(OSError, WorkerError), adding(directory):  # which does it, unless one is adding now
            pass
    if gone:
        log.info("%d file(s) of %s were removed: they are none of the cache's", gone, directory)
    if failed is not None:
        log.warning("not all can be removed that is in %s: %s", directory, (failed.strerror or str(failed)).lower())


def room(directory: Path) -> int:
    """Bytes that we can still write there; what is kept for root counts for root."""
    disk = os.statvfs(directory)
    return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize


def spare_room(directory: Path) -> int:
    """Bytes of `room` that the cache may use; negative when it has used too many."""
    disk = os.statvfs(directory)
    return room(directory) - max(LITTLE, min(disk.f_blocks * disk.f_frsize // _OTHERS_PART, _OTHERS_ENOUGH))


def shrink(directory: Path, max_size: int) -> list[Entry]:
    """Remove what was not used for longest until the rest has no more than `max_size` bytes; what went."""
    files = entries(directory)
    return _remove_first(directory, files, sum(entry.bytes for entry in files) - max_size)


def make_room(directory: Path) -> list[Entry]:
    """Likewise, until `spare_room` is no longer negative."""
    lacking = -spare_room(directory)
    return _remove_first(directory, entries(directory), lacking) if lacking > 0 else []


def with_cache(arguments: list[str], environ: Mapping[str, str]) -> list[str]:
    """`arguments` of a server, and `-c` where there is a directory that we can write, and no other user."""
    asked = bool(set(FLAGS) & set(arguments))
    try:
        directory = own_directory(environ)
        make_private(directory)
        check_safe(directory)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} may not be written")
    except (OSError, WorkerError) as error:
        if asked and isinstance(error, OSError):  # the server tells that, and ends
            return arguments
        log.warning("weights are not cached: %s; name another place with LLAMA_CACHE, or say --cache off", error)
        return [argument for argument in arguments if argument not in FLAGS]
    return arguments if asked else [*arguments, FLAGS[0]]


@contextlib.contextmanager
def adding(directory: Path) -> Iterator[None]:
    """Be the only one that adds to `directory`; nothing half-written stays, nor what a killed one left of it.

    Raises `WorkerError`.
    """
    try:
        make_private(directory)
        fd = _open(directory)
    except OSError as error:
        raise WorkerError(
            f"cannot use {directory}: {(error.strerror or str(error)).lower()}", "name another place with LLAMA_CACHE"
        ) from None
    with opened(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkerError(
                f"something else is being added to {directory}, or the server holds it",
                "wait until it has ended; if nothing is being added, stop the worker",
            ) from None
        try:
            _clean(directory, fd)
            yield
        finally:
            _clean(directory, fd)


def _directory(environ: Mapping[str, str]) -> Path:
    if environ.get("LLAMA_CACHE"):
        return Path(environ["LLAMA_CACHE"], "rpc")
    home = environ.get("HOME") or Path.home()
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "llama.cpp", "rpc")


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What is there; where that is more than `MAX_NAMES`, the rest is removed, for the next look would be as long."""
    gone = 0
    with opened(_open(directory)) as fd, os.scandir(directory) as scanned:
        for number, entry in enumerate(scanned):
            if number < MAX_NAMES:
                yield entry
            else:
                with contextlib.suppress(OSError):
                    gone += remove(fd, entry.name)
    if gone:
        log.warning("%d file(s) of %s were removed: there were too many", gone, directory)


def _may_be_ours(entry: os.DirEntry[str]) -> bool:
    """Whether the server, a worker or `cache add` may have written it, or is about to."""
    try:
        size = entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:  # somebody else removed it
        return True
    if size is None:
        return False
    if ENTRY.fullmatch(entry.name):
        return size > _THRESHOLD
    return bool(MARK.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name))


def _clean(directory: Path, fd: int) -> None:
    for entry in _scan(directory):
        if _TEMPORARY.fullmatch(entry.name):
            remove(fd, entry.name)


def _remove_first(directory: Path, files: Iterable[Entry], lacking: int) -> list[Entry]:
    """Remove the first ones of `files` until they had `lacking` bytes."""
    gone = []
    for entry in files:
        if lacking <= 0:
            break
        with contextlib.suppress(OSError):
            (directory / entry.name).unlink()
            gone.append(entry)
            lacking -= entry.bytes
    return gone
