"""The layers of the sandbox: which of them the kernel grants, and putting on those of the server's process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.p2p import privileges, seccomp
from app.p2p.landlock import Access, Ruleset


class Layer(StrEnum):
    """What stands between a server that was taken over and the machine; named as users see it."""

    NETWORK = "network"
    """A network of its own: `namespace`."""
    FILES = "files"
    """The files of `confinement` and no others, no TCP connection, no signal to others: `landlock`."""
    CALLS = "calls"
    """No way to the machine's services, nor to the permissions of files, and no other process: `seccomp`."""


OF_THE_PROCESS = (Layer.FILES, Layer.CALLS)
"""Those that a server puts on by itself, each time; the network is the keeper's."""

_WITHOUT = "; --sandbox auto runs without it"


@dataclass(frozen=True)
class Words:
    """How a layer that is missing is told of."""

    what: str
    """To be read after "cannot have"."""
    risk: str
    remedy: str
    """Empty: see `namespace.remedy`."""


WORDS = {
    Layer.NETWORK: Words("a network of its own", "Every user of this machine can reach its port.", ""),
    Layer.FILES: Words(
        "files of its own",
        "Who takes it over can read and write all that you can.",
        "it needs Linux 5.13 or later, `landlock` among the security modules that the kernel starts with (lsm=), "
        "and a container that lets it through" + _WITHOUT,
    ),
    Layer.CALLS: Words(
        "a filter of system calls",
        "Who takes it over can have the services of this machine act for you, and start programs.",
        "a container or a service manager may forbid it: look at its security options" + _WITHOUT,
    ),
}


def names(in_force: Iterable[Layer]) -> str:
    """Such as "network+files+calls"; "off" for none."""
    return "+".join(layer for layer in Layer if layer in in_force) or "off"


def refusals() -> dict[Layer, str]:
    """The layers of the process that the kernel does not grant, and why; found out by a child that ends at once."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            privileges.give_up()
            steps: dict[Layer, Callable[[], None]] = {Layer.FILES: _leave_nothing, Layer.CALLS: seccomp.restrict}
            for layer, step in steps.items():
                reason = ""
                try:
                    step()
                except OSError as error:
                    reason = str(error.strerror)
                os.write(tell, f"{layer}\t{reason}\n".encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        tried = {Layer(name): reason for name, reason in (line.rstrip("\n").split("\t") for line in reading)}
    os.waitpid(pid, 0)
    reasons = {layer: tried.get(layer, "whoever tries it is killed") for layer in OF_THE_PROCESS}
    return {layer: reason for layer, reason in reasons.items() if reason}


def put_on(ruleset: Ruleset | None, calls: bool) -> None:
    """In the process that is about to be the server: for good. Raises `OSError`."""
    privileges.give_up()
    if ruleset is not None:
        ruleset.allow("/proc/self", Access.READ)
        # NVIDIA's driver names its threads through /proc, and CUDA fails with error 304 where it may not (from 570 on)
        ruleset.allow("/proc/self/task", Access.USE)
        ruleset.enforce()
    if calls:
        seccomp.restrict()


def _leave_nothing() -> None:
    with Ruleset() as ruleset:
        ruleset.enforce()
