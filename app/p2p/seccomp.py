"""Refuses the system calls by which a server could get at what neither Landlock nor its own network keeps from it."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

from app.p2p.libc import call

_SET_MODE_FILTER = 1  # linux/seccomp.h
_SPEC_ALLOW = 1 << 2
"""Without this flag kernels before 5.16 slow down everything that the process computes."""
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS
"""As a kernel that is too old: the C library then makes its threads in the old way, whose flags we can read."""

_LOAD = 0x20  # linux/filter.h: BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_IF_ANY_BIT = 0x45
_RETURN = 0x06
_INSTRUCTION = struct.Struct("=HBBI")
"""What to do, how many to skip if it holds, and if not, an operand."""
_NUMBER, _ARCHITECTURE = 0, 4
"""Where struct seccomp_data has these, and the two halves of an argument."""
_FIRST_ARGUMENT = (16, 20)
_FIFTH_ARGUMENT = (48, 52)
_X32 = 0x40000000
"""Numbers from here on are a second table of the same calls on x86-64."""
_CLONE_THREAD = 0x10000  # linux/sched.h
_CLONE3 = 435


@dataclass(frozen=True)
class _Machine:
    audit: int
    """linux/audit.h"""
    seccomp: int
    sendto: int
    clone: int
    prlimit64: int
    refused: tuple[int, ...]


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 317, 44, 56, 302,
        (42, 46, 307, 90, 91, 268, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 76, 248, 249, 250)
        + (57, 58, 112, 109, 272, 308),
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 206, 220, 261,
        (203, 211, 269, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 45, 217, 218, 219)
        + (157, 154, 97, 268),
    ),
}  # fmt: skip
"""In this order, asm/unistd.h:

- connect, sendmsg, sendmmsg (and sendto with an address): Unix sockets that have a path are in no network
  namespace. Behind them are D-Bus, systemd and container engines, which run commands for whoever asks;
- chmod, fchmod, fchmodat, chown, fchown, lchown, fchownat, setxattr, lsetxattr, fsetxattr, removexattr,
  lremovexattr, fremovexattr: Landlock does not look at them. (Of the first group aarch64 has only the `f` ones and
  `fchownat`);
- truncate: Landlock looks at it from ABI 3 on;
- add_key, request_key, keyctl: the keys of the user's session;
- fork, vfork, setsid, setpgid, unshare, setns (and clone of anything but a thread): what it started could outlive
  it, and be taken for the next server. (The first two aarch64 has not.)

And prlimit64 of another process: a limit of no processor time kills it.
"""
_REFUSED_EVERYWHERE = (425, 452, 463, 466, 469)
"""io_uring_setup, which would go around all this; fchmodat2, setxattrat, removexattrat, file_setattr."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict() -> None:
    """For this thread and its children, for good; privileges must have been given up before. Raises `OSError`."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"seccomp: the calls of {platform.machine()} are not known")
    code = _filter(machine)
    program = _Program(len(code) // _INSTRUCTION.size, code)
    call("syscall", machine.seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, program, step="seccomp")


def _filter(machine: _Machine) -> bytes:
    refuse, allow = (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, machine.audit), refuse]
    program += [(_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, _X32), refuse]
    for number in (*machine.refused, *_REFUSED_EVERYWHERE):
        program += [(_IF_EQUAL, 0, 1, number), refuse]
    program += [(_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _UNKNOWN)]
    flags, _ = _FIRST_ARGUMENT
    program += [(_IF_EQUAL, 0, 4, machine.clone), (_LOAD, 0, 0, flags), (_IF_ANY_BIT, 1, 0, _CLONE_THREAD)]
    program += [refuse, allow]
    for number, argument in ((machine.sendto, _FIFTH_ARGUMENT), (machine.prlimit64, _FIRST_ARGUMENT)):
        program += [(_IF_EQUAL, 0, 3 * len(argument) + 1, number)]
        for half in argument:  # to be 0: no address, oneself
            program += [(_LOAD, 0, 0, half), (_IF_EQUAL, 1, 0, 0), refuse]
        program += [allow]
    program += [allow]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
