"""Goal: a call to the C library passes whole words, and tells which step failed and why."""

from __future__ import annotations

import errno
import os

import pytest

from app.p2p.libc import call


def test_what_the_function_says_is_returned() -> None:
    assert call("getpid") == os.getpid()
    assert call("abs", -5) == 5


def test_a_failure_names_its_step() -> None:
    with pytest.raises(OSError, match="reaching out: Bad file descriptor") as failed:
        call("close", -1, step="reaching out")
    assert failed.value.errno == errno.EBADF
