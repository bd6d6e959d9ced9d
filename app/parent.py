"""Ties a process to its parent: when that dies, however it dies, this one does too."""

from __future__ import annotations

import ctypes
import logging
import os
import signal

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

log = logging.getLogger(__name__)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when the *thread* that forked it ends.

    It survives exec. The parent that counts is the one of this moment, whatever its
    number: in a container it may be 1 from the start.
    """
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        log.warning("cannot tie this process to its parent: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:
        os._exit(1)  # it died in between and the signal will not come
