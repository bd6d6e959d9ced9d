"""Goal: a call to the C library passes whole words, and tells which step failed and why."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.p2p.libc import call


def test_what_the_function_says_is_returned() -> None:
    assert call("getpid") == os.getpid()
    assert call("abs", -5) == 5


def test_a_failure_names_its_step() -> None:
    with pytest.raises(OSError, match="reaching out: Bad file descriptor") as failed:
        call("close", -1, step="reaching out")
    assert failed.value.errno == errno.EBADF


_HEAPS = """
import sys
from pathlib import Path
from threading import Barrier, Thread
from app.p2p.libc import bound_heaps
if sys.argv[1] == "bound": bound_heaps()
meet = Barrier(17)
def allocate():
    kept = [bytearray(1000) for _ in range(100)]
    meet.wait()
    meet.wait()
threads = [Thread(target=allocate) for _ in range(16)]
for thread in threads: thread.start()
meet.wait()
import ctypes, os
libc = ctypes.CDLL(None)
read, write = os.pipe()
out = libc.fdopen
out.restype = ctypes.c_void_p
stream = out(write, b"w")
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fclose(ctypes.c_void_p(stream))
print(os.read(read, 1 << 16).count(b"<heap "))
meet.wait()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="this C library tells nothing of its heaps")
def test_sixteen_threads_share_two_heaps() -> None:
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", _HEAPS, how]
        env = os.environ | {"PYTHONMALLOC": "malloc", "PYTHONPATH": str(Path.cwd())}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)

    assert heaps("bound") <= 2 < heaps("free")
