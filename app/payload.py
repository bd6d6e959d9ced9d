"""The carried assets -> a directory whose every file is the one that was built.

`BASE/<digest>/backend-assets/...`: one directory a payload, so that versions
stand side by side and an upgrade never writes to a file that runs. Unpacking goes
lock -> look again -> temporary sibling -> verify -> rename; a directory that fails its
check is set aside, never mended in place. Nothing waits for the disk: every start checks
every byte, so what a power cut took is unpacked once more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import lzma
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app import segments
from app.directories import UnsafeDirectory, open_private, opened, remove
from app.embedded import Payload
from app.errors import WorkerError, damaged_copy
from app.manifest import Manifest
from app.options import DEFAULT_ASSETS_PATH
from app.verify import Damaged, verify

SERVER = "backend-assets/util/llama-cpp-rpc-server"
LIBRARIES = "backend-assets/lib"
PROBE = "backend-assets/util/worker-probe"
CACHE_TOOL = "backend-assets/util/worker-cache"
VULKAN_LOADER = "backend-assets/vulkan/libvulkan.so.1"
"""For machines that have none."""

LOCK_TIMEOUT = 120.0
"""Seconds to wait for another start that is unpacking: many times what a slow flash card needs."""
_LOCK_POLL = 0.02
_LOCK = ".lock"
_TEMPORARY = ".tmp-"
_SET_ASIDE = ".damaged"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assets:
    """A verified directory. While `fd` is open (also in a program we exec) nobody prunes it."""

    base: Path
    path: Path
    fd: int

    @property
    def server(self) -> Path:
        """The rpc-server."""
        return self.path / SERVER

    @property
    def loaders(self) -> Path:
        """Where the carried Vulkan loader is."""
        return (self.path / VULKAN_LOADER).parent


def base_directories(given: str | None, environ: Mapping[str, str]) -> list[Path]:
    """Where to unpack, best first. A path that the user gave is never replaced by another."""
    if given is not None:
        return [_absolute(given)]
    bases = [Path(DEFAULT_ASSETS_PATH)]
    with contextlib.suppress(RuntimeError):  # a user without a home directory has no fall-back
        bases.append(_absolute(environ.get("XDG_CACHE_HOME") or "~/.cache") / "localai" / "backend_data")
    return bases


def ensure(payload: Payload, given: str | None, environ: Mapping[str, str]) -> Assets:
    """A verified directory with the payload's files, unpacked if need be.

    `given` is the user's assets path; without it the default is used, and the
    user's cache directory where the default is unusable. Raises `WorkerError`
    with code 4 when neither can be used.
    """
    first, *others = base_directories(given, environ)
    try:
        return _ensure_in(payload, first)
    except UnsafeDirectory as problem:
        for base in others:
            log.warning("%s; using %s", problem.message, base)
            try:
                return _ensure_in(payload, base)
            except UnsafeDirectory as second:
                raise WorkerError(f"{problem.message}; {second.message}", second.hint, second.code) from None
        raise


def verified(base: Path, wanted: Manifest) -> Assets:
    """The unpacked directory in `base` as it stands. Raises `Damaged`, `FileNotFoundError`, `UnsafeDirectory`."""
    with opened(open_private(base, create=False)) as base_fd:
        assets = _open_assets(base, base_fd, wanted)
    try:
        verify(assets.fd, wanted)
    except BaseException:
        os.close(assets.fd)
        raise
    return assets


def _ensure_in(payload: Payload, base: Path) -> Assets:
    wanted = payload.manifest
    with readable_errors(base), opened(open_private(base, create=True)) as base_fd:
        if os.fstatvfs(base_fd).f_flag & os.ST_NOEXEC:
            raise UnsafeDirectory(
                f"{base} is on a file system mounted noexec",
                "name a directory where programs may run with --backend-assets-path or BACKEND_ASSETS_PATH",
            )
        with contextlib.suppress(FileNotFoundError, Damaged):
            return verified(base, wanted)
        with locked(base_fd, base):
            try:
                return verified(base, wanted)
            except FileNotFoundError:
                pass
            except Damaged as damage:
                log.warning("%s: %s; unpacking anew", base / wanted.digest, damage)
                _set_aside(base_fd, wanted.digest)
            return Assets(base, base / wanted.digest, _unpack(payload, base_fd))


def _unpack(payload: Payload, base_fd: int) -> int:
    """Under the lock: unpack to a temporary sibling, check it, and give it its name; the directory, open and locked."""
    wanted = payload.manifest
    for name in os.listdir(base_fd):
        if name.startswith(wanted.digest + _TEMPORARY):
            remove(base_fd, name)  # of a start that was killed: the lock is ours
    temporary = f"{wanted.digest}{_TEMPORARY}{secrets.token_hex(4)}"
    os.mkdir(temporary, 0o700, dir_fd=base_fd)
    try:
        fd = os.open(temporary, _DIRECTORY, dir_fd=base_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            segments.extract(wanted, payload.read_segment, fd)
            verify(fd, wanted)
            os.rename(temporary, wanted.digest, src_dir_fd=base_fd, dst_dir_fd=base_fd)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        remove(base_fd, temporary)
        raise
    return fd


def _open_assets(base: Path, base_fd: int, wanted: Manifest) -> Assets:
    try:
        fd = os.open(wanted.digest, _DIRECTORY, dir_fd=base_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged((error.strerror or str(error)).lower()) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Damaged("it is being removed") from None
    return Assets(base, base / wanted.digest, fd)


def _set_aside(base_fd: int, digest: str) -> None:
    """Keep one damaged directory for whoever wants to know what happened."""
    remove(base_fd, digest + _SET_ASIDE)
    os.rename(digest, digest + _SET_ASIDE, src_dir_fd=base_fd, dst_dir_fd=base_fd)


@contextlib.contextmanager
def locked(base_fd: int, base: Path) -> Iterator[None]:
    """Hold the lock that only one unpacking or pruning process has; waits at most `LOCK_TIMEOUT`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with opened(os.open(_LOCK, flags, 0o600, dir_fd=base_fd)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{base / _LOCK} is not a regular file", f"remove {base / _LOCK}")
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnsafeDirectory(
                        f"another start has been unpacking to {base} for {LOCK_TIMEOUT:.0f} s",
                        "end it, then start again",
                    ) from None
                time.sleep(_LOCK_POLL)
        yield


@contextlib.contextmanager
def readable_errors(base: Path) -> Iterator[None]:
    """What the system refuses, and a broken archive, as one line with a remedy."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: (f"no space left in {base}", "make room, or name another directory with BACKEND_ASSETS_PATH"),
            errno.EDQUOT: (f"the disk quota is used up in {base}", "make room, or set BACKEND_ASSETS_PATH"),
            errno.EROFS: (f"{base} is read-only", "name a writable directory with BACKEND_ASSETS_PATH"),
        }
        reason = (error.strerror or str(error)).lower()
        default = (f"cannot use {base}: {reason}", "name another directory with BACKEND_ASSETS_PATH")
        raise UnsafeDirectory(*reasons.get(error.errno or 0, default)) from error
    except (Damaged, EOFError, ValueError, lzma.LZMAError) as error:
        raise damaged_copy(f"the carried files are broken: {error}") from error


def _absolute(path: str) -> Path:
    """Absolute and without `..`, but with its symbolic links: `open_private` refuses those."""
    return Path(os.path.normpath(Path(path).expanduser().absolute()))
