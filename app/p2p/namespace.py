"""Puts this process in a network of its own: a loopback that nobody else can reach, and nothing more."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from app.p2p.libc import call

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000
"""System V's shared memory, which has neither a path nor a socket."""
_IFF_UP = 0x1  # linux/if.h
_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFREQ = struct.Struct("16sH22x")
"""struct ifreq of netdevice(7): a name, then its flags in a union of 24 bytes."""

_WITHOUT = "--sandbox off runs without it, and then every user of this machine reaches rpc-server"
_REMEDIES = (
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor forbids it to programs without a profile: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("user/max_user_namespaces", "0", "allow user namespaces: sysctl user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1"),
)
"""Switches below /proc/sys that stop everybody but root, the value that does, what to do about it."""


def enter() -> None:
    """Leave the machine's network for a new one whose only interface, `lo`, is up, and its shared memory.

    Root takes a network namespace only: a user namespace that maps uid 0 alone would lose it the
    files of everybody else. Others need a user namespace around it, and keep their ids in it.

    The process must have a single thread (unshare(2)). Raises `OSError` whose text names the step
    that the kernel refused; the process may then be half way in and must be thrown away.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        call("unshare", _CLONE_NEWNET | _CLONE_NEWIPC)
    else:
        call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
        _write("/proc/self/setgroups", "deny")  # user_namespaces(7): or the kernel refuses the map of groups
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _bring_up("lo")


def remedy(uid: int, switches: Path = Path("/proc/sys")) -> str:
    """What user `uid` can do when `enter` failed, as far as the machine's switches tell."""
    if uid != 0:
        for switch, forbidding, hint in _REMEDIES:
            with suppress(OSError):
                if (switches / switch).read_text().strip() == forbidding:
                    return f"{hint}; {_WITHOUT}"
    return f"a container or a service manager may forbid it: look at its security options; {_WITHOUT}"


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise _refused(path, error.errno) from None


def _bring_up(interface: str) -> None:
    request = _IFREQ.pack(interface.encode(), _IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
        except OSError as error:
            raise _refused(f"bringing {interface} up", error.errno) from None


def _refused(step: str, code: int | None) -> OSError:
    return OSError(code, f"{step}: {os.strerror(code or 0)}")
