"""How much of each fault: little in the test command; all of it in `python3 build.py faults`, which judges time too."""

from __future__ import annotations

import os

VARIABLE = "WORKER_FAULTS"
FULL = os.environ.get(VARIABLE) == "full"


def count(small: int, full: int) -> int:
    """`full` in the full run, else `small`."""
    return full if FULL else small


def judge(holds: bool, told: str) -> None:
    """Fail when a figure does not hold; in the full run only, for the test command judges no time."""
    assert holds or not FULL, told
