"""Directories that hold code: nobody but us and root may be able to change what we find there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from app.errors import ExitCode, WorkerError

_MAX_DEPTH = 10_000
"""Directories in one another that are removed at a time: paths are shorter, and who adds some is not waited for."""


class UnsafeDirectory(WorkerError):
    """The directory, or one on the way to it, cannot be used; the hint says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint, ExitCode.ASSETS)


def make_private(directory: Path) -> None:
    """Make `directory` and what is missing above it, for us alone; what is there stays as it is. Raises `OSError`."""
    if not directory.is_dir():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)  # which gives its mode to the last one alone


def open_private(path: Path, *, create: bool) -> int:
    """A descriptor of the directory `path` (absolute), reached through no symbolic link.

    Every directory on the way must belong to us or root and be writable by nobody
    else, except a root-owned sticky one such as /tmp; the last must be ours. With
    `create` the missing ones are made, mode 0700. Raises `UnsafeDirectory`, and
    `FileNotFoundError` when the directory is missing and is not to be made.
    """
    here = Path("/")
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts[1:]:
            here /= part
            below = _open_below(fd, part, here, create=create)
            os.close(fd)
            fd = below
            check_owner(os.fstat(fd), here)
        if os.fstat(fd).st_uid != os.geteuid():
            raise UnsafeDirectory(f"{path} belongs to another user", _elsewhere(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_owner(status: os.stat_result, path: Path, *, sticky: bool = True, owner: int | None = None) -> None:
    """Raise `UnsafeDirectory` unless `path` belongs to us, `owner` or root, and nobody else may write to it.

    Others may add to a root-owned sticky directory, but not change what is ours there; `sticky`: whether that will do.
    """
    if status.st_uid not in (0, os.geteuid(), owner):
        raise UnsafeDirectory(f"{path} belongs to another user (uid {status.st_uid})", _elsewhere(path))
    excepted = sticky and status.st_uid == 0 and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not excepted:
        raise UnsafeDirectory(f"{path} can be written by other users", f"chmod go-w {path}, or {_elsewhere(path)}")


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close `fd` at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def remove(parent: int, name: str) -> bool:
    """Remove a directory tree, or whatever else has that name; follows no link.

    However deep and wide it is, it takes no more memory and descriptors. Raises `OSError` also where somebody adds
    to it meanwhile.
    """
    try:
        fd = _open_to_empty(parent, name)
    except FileNotFoundError:
        return False
    except NotADirectoryError:  # a link as well
        os.unlink(name, dir_fd=parent)
        return True
    with opened(fd):
        for _ in range(_MAX_DEPTH):
            if not _lift(fd):
                break
    os.rmdir(name, dir_fd=parent)
    return True


def _open_to_empty(parent: int, name: str) -> int:
    path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    with opened(path):
        with contextlib.suppress(OSError):  # not ours: then we see what we may do
            Path(f"/proc/self/fd/{path}").chmod(0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path)


def _lift(top: int) -> bool:
    """Empty the directory `top` by one level: what is in a directory of it moves up. Whether anything was there."""
    found = False
    with os.scandir(top) as scanned:
        for entry in scanned:
            found = True
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=top)
                continue
            with opened(_open_to_empty(top, entry.name)) as fd, os.scandir(fd) as below:
                for one in below:
                    if one.is_dir(follow_symlinks=False):
                        os.close(_open_to_empty(fd, one.name))  # which may be moved only when it may be written
                        os.rename(one.name, secrets.token_hex(16), src_dir_fd=fd, dst_dir_fd=top)
                    else:
                        os.unlink(one.name, dir_fd=fd)
            os.rmdir(entry.name, dir_fd=top)
    return found


def _open_below(parent: int, name: str, path: Path, *, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
        with contextlib.suppress(FileExistsError):  # another start was faster
            os.mkdir(name, 0o700, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            kind = "a symbolic link" if path.is_symlink() else "not a directory"
            raise UnsafeDirectory(f"{path} is {kind}", _elsewhere(path)) from None
        raise UnsafeDirectory(
            f"cannot use {path}: {(error.strerror or str(error)).lower()}", _elsewhere(path)
        ) from None


def _elsewhere(path: Path) -> str:
    resolved = path.resolve()
    target = f" (it leads to {resolved})" if resolved != path else ""
    return f"name another directory with --backend-assets-path or BACKEND_ASSETS_PATH{target}"
