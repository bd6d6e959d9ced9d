"""Calls functions of the C library that Python has no name for."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_LIBC = ctypes.CDLL(None, use_errno=True)

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2

Argument = int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_char]


def call(function: str, *arguments: Argument, step: str = "") -> int:
    """What `function` returns; raises `OSError` whose text begins with `step` where that is -1.

    Only for functions that take integers of a register's width, and pointers, and return an int.
    """
    entry = getattr(_LIBC, function)
    entry.restype = ctypes.c_int  # read as a long, the -1 of a function that returns an int would be 2**32 - 1
    # ctypes would pass an int as 32 bits, and leave the upper half of a variadic one undefined
    passed = [
        ctypes.c_long(given) if isinstance(given, int) else given if isinstance(given, bytes) else ctypes.byref(given)
        for given in arguments
    ]
    returned: int = entry(*passed)
    if returned == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{step or function}: {os.strerror(code)}")
    return returned


def bound_heaps() -> None:
    """Give all threads two heaps between them; before the first thread.

    glibc gives threads heaps of their own, up to eight a processor, and each keeps what the blocks of its
    busiest tunnel took: a worker grew from 81 to 119 MiB in half an hour of coming and going heads, and
    stayed at 75 with this.
    """
    with suppress(AttributeError):  # another C library has no such thing
        call("mallopt", _M_ARENA_MAX, _ARENAS)
