"""Runs a function in a child, for what a process cannot take back."""

from __future__ import annotations

import os
from collections.abc import Callable


def forked(body: Callable[[], object]) -> str:
    """What `body` returns, as text, or the text of its `OSError`."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = "it broke"
        try:
            report = str(body())
        except OSError as error:
            report = str(error.strerror)
        finally:
            os.write(tell, report.encode())
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        report = reading.read()
    os.waitpid(pid, 0)
    return report
