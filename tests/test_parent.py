"""Goal: a process that is tied to its parent does not outlive it, across exec and with any signal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

_CHILD = """
import os, signal, sys
from app.parent import die_with_parent
if os.fork() == 0:
    die_with_parent(signal.Signals(int(sys.argv[1])))
    os.execvp("sh", ["sh", "-c", "echo $$; exec sleep 60"])
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(number: signal.Signals, death: signal.Signals) -> None:
    command = [sys.executable, "-c", _CHILD, str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert not select.select([child], [], [], 0.1)[0]
        parent.send_signal(death)
        assert select.select([child], [], [], 10)[0], "it outlived its parent"
        os.close(child)
