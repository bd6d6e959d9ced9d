"""Landlock: a process gives up every file but those of a list, and what else the kernel's version of it can take.

What each ABI brings is in landlock(7) and linux/landlock.h.
"""

from __future__ import annotations

import os
import stat
import struct
from enum import IntFlag
from types import TracebackType

from app.p2p.libc import call

_CREATE_RULESET = 444  # asm-generic/unistd.h; the same on every architecture
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1  # linux/landlock.h
_PATH_BENEATH = 1
_RULESET = struct.Struct("=QQQ")
"""Handled rights to files, handled rights to ports, scopes. Older kernels take the first, or the first two."""
_RULE = struct.Struct("=Qi")
_RULESET_SIZES = ((6, 24), (4, 16), (1, 8))
"""From which ABI on, bytes of `_RULESET` that it knows."""
_CONNECT_TCP = 1 << 1
_SCOPES = 1 << 0 | 1 << 1
"""Abstract Unix sockets, and signals."""


class Access(IntFlag):
    """What may be done below a path; each is as the kernel has it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15

    READ = EXECUTE | READ_FILE | READ_DIR
    USE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV
    """For devices, and files that are there already."""
    KEEP = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_DIR | MAKE_REG | REMOVE_DIR | REMOVE_FILE | REFER
    """For a directory of one's own; nothing in it can be executed."""


_ADDED = ((2, Access.REFER), (3, Access.TRUNCATE), (5, Access.IOCTL_DEV))
_TO_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
"""What can be allowed for a path that is no directory."""


def abi() -> int:
    """The kernel's version of Landlock. Raises `OSError`: there is none, or it was not enabled at boot."""
    return call("syscall", _CREATE_RULESET, 0, 0, _VERSION, step="Landlock")


class Ruleset:
    """What will be left to a process; everything else that the kernel can refuse is refused."""

    def __init__(self) -> None:
        version = abi()
        self._handled = ~Access(0)
        for since, right in _ADDED:
            if version < since:
                self._handled &= ~right
        size = next(size for since, size in _RULESET_SIZES if version >= since)
        attributes = _RULESET.pack(self._handled, _CONNECT_TCP, _SCOPES)[:size]
        self._fd = call("syscall", _CREATE_RULESET, attributes, size, 0, step="Landlock")
        self._pins: list[int] = []

    def allow(self, path: str, access: Access) -> None:
        """Leave `access` to `path` and what is below it, also behind mounts; what is not there is passed over."""
        pin = self.pin(path)
        if pin is None:
            return
        access &= self._handled
        if not stat.S_ISDIR(os.fstat(pin).st_mode):
            access &= _TO_FILES
        call("syscall", _ADD_RULE, self._fd, _PATH_BENEATH, _RULE.pack(access, pin), 0, step=f"Landlock: {path}")
        if not path.startswith("/proc/"):
            os.close(self._pins.pop())  # the rule itself holds an inode of any other file system

    def pin(self, path: str) -> int | None:
        """A descriptor of `path`, open until the ruleset is closed; None where there is no such thing.

        A rule is about an inode, and /proc may make another one for the same path when memory runs short:
        it forgets what nobody has open. So a ruleset is kept for as long as its rules shall count.
        """
        try:
            self._pins.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        except OSError:
            return None
        return self._pins[-1]

    def enforce(self) -> None:
        """Leave nothing else to this thread and its children; privileges must have been given up before."""
        call("syscall", _RESTRICT_SELF, self._fd, 0, step="Landlock")

    def close(self) -> None:
        """Let go of it; who enforces it stays restricted."""
        for fd in (self._fd, *self._pins):
            os.close(fd)
        self._pins.clear()
        self._fd = -1

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
