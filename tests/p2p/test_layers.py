"""Goal: it is known beforehand which layers the kernel grants, and those in force are named in one order."""

from __future__ import annotations

import ctypes
import struct

import pytest

from app.p2p import layers
from app.p2p.layers import WORDS, Layer
from tests.p2p.forked import forked

ALLOW = 0x7FFF0000
EPERM = 0x00050001
KILL = 0x80000000


def without(number: int, verdict: int) -> str:
    """What `refusals` finds where a container's filter has that verdict on a system call."""

    def run() -> dict[str, str]:
        libc = ctypes.CDLL(None)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, verdict), (0x06, 0, 0, ALLOW)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
        assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        return {str(layer): reason for layer, reason in layers.refusals().items()}

    return forked(run)


@pytest.fixture(autouse=True)
def _grants_all() -> None:
    if missing := layers.refusals():
        pytest.skip(f"this machine allows less: {missing}")


def test_what_a_container_forbids_is_found_out_with_the_reason() -> None:
    assert without(444, EPERM) == "{'files': 'Landlock: Operation not permitted'}"
    assert without(446, EPERM) == "{'files': 'Landlock: Operation not permitted'}"


def test_a_container_that_kills_for_it_kills_a_child_only() -> None:
    assert without(444, KILL) == "{'files': 'whoever tries it is killed', 'calls': 'whoever tries it is killed'}"


def test_names() -> None:
    assert layers.names([Layer.CALLS, Layer.NETWORK, Layer.FILES]) == "network+files+calls"
    assert layers.names([]) == "off"


def test_every_layer_has_words() -> None:
    assert set(WORDS) == set(Layer)
