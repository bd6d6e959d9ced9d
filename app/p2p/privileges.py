"""Gives up what root, or a setuid program, could do beyond a plain user."""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress

from app.p2p.libc import call

_PR_CAPBSET_DROP = 24  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES = 64
"""More than there are; the kernel refuses the number of one that it does not know."""
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h: two words for each set
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")
"""Effective, permitted, inheritable: the low words, then the high ones."""
_DAC_OVERRIDE = 1 << 1
"""The one that is left to root. Without it a root whose HOME is another user's could not write its cache there.
Taking it would protect little: the files that make a machine one's own are root's, and need no capability."""


def give_up() -> None:
    """For this process and what it becomes: no program raises its rights any more, and root has no capability
    but to look past the permissions of files. Raises `OSError`."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, step="no_new_privs")
    for number in range(_CAPABILITIES):
        if not _DAC_OVERRIDE >> number & 1:
            with suppress(OSError):  # unknown, or we are no root and have none to lose
                call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    header, sets = _HEADER.pack(_CAPABILITY_VERSION, 0), ctypes.create_string_buffer(_SETS.size)
    call("capget", header, sets)
    kept = _SETS.unpack(sets)[1] & _DAC_OVERRIDE
    call("capset", header, _SETS.pack(kept, kept, 0, 0, 0, 0))
