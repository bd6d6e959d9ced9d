"""Is a directory exactly what the manifest says, and nobody's but ours?"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import partial

from app import parallel
from app.manifest import FileEntry, Manifest


class Damaged(Exception):
    """The unpacked directory is not what the manifest says."""


def verify(fd: int, wanted: Manifest) -> None:
    """Raise `Damaged` unless the directory `fd` holds exactly the manifest's files, all of them ours alone."""
    missing = set(wanted.files) | wanted.directories
    pending = [("", os.dup(fd))]
    files: list[tuple[int, str, FileEntry]] = []
    try:
        while pending:
            prefix, directory = pending.pop()
            try:
                _check_ours(os.fstat(directory), prefix or ".")
                for name in os.listdir(directory):
                    path = prefix + name
                    if path not in missing:
                        raise Damaged(f"{path} does not belong there")
                    missing.discard(path)
                    if path in wanted.files:
                        # Not blocking: a FIFO in the place of a file must not hang the start.
                        opened = _open_checked(directory, name, path, os.O_NONBLOCK)
                        files.append((opened, path, wanted.files[path]))
                        _check_file(*files[-1])
                    else:
                        pending.append((path + "/", _open_checked(directory, name, path, os.O_DIRECTORY)))
            finally:
                os.close(directory)
        if missing:
            raise Damaged(f"{min(missing)} is missing")
        files.sort(key=lambda file: file[2].size, reverse=True)
        parallel.run(partial(_check_content, *file) for file in files)
    finally:
        for descriptor in [*(directory for _, directory in pending), *(descriptor for descriptor, _, _ in files)]:
            os.close(descriptor)


def _check_file(fd: int, path: str, entry: FileEntry) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"{path} is not a regular file")
    _check_ours(status, path)
    if status.st_nlink != 1:
        raise Damaged(f"{path} has another name elsewhere")
    if stat.S_IMODE(status.st_mode) != entry.mode or status.st_size != entry.size:
        raise Damaged(f"{path} has another mode or size")


def _check_content(fd: int, path: str, entry: FileEntry) -> None:
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            raise Damaged(f"{path} has another content")


def _open_checked(directory: int, name: str, path: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=directory)
    except OSError as error:
        raise Damaged(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _check_ours(status: os.stat_result, path: str) -> None:
    if status.st_uid != os.geteuid():
        raise Damaged(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Damaged(f"{path} can be written by other users")
