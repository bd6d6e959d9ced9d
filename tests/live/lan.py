"""A LAN of network namespaces: hosts with an interface each, on one bridge, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """One machine of the LAN."""

    namespace: str
    switch: str
    """The namespace that holds the other end of its cable."""
    address: str
    address6: str

    def command(self, words: Sequence[str | Path]) -> list[str | Path]:
        """`words` as a command that runs on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def link(self, state: str) -> None:
        """Pull its cable at the switch (`down`) or put it back (`up`)."""
        _ip("-n", self.switch, "link", "set", f"{self.namespace}p", state)


def missing() -> str:
    """Why no LAN can be made here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    trial = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return "" if trial.returncode == 0 else "this machine lets us make no network namespace"


@contextmanager
def lan(count: int, name: str = "w") -> Iterator[list[Host]]:
    """`count` hosts, 10.77.0.1 and fd77::1 on. Two at once need names, of few letters."""
    prefix = f"{name}{os.getpid()}"
    switch = f"{prefix}s"
    hosts = [
        Host(f"{prefix}h{number}", switch, f"10.77.0.{number}", f"fd77::{number}") for number in range(1, count + 1)
    ]
    # The switch is a namespace too: the machine's own network is left alone.
    namespaces = [switch, *(host.namespace for host in hosts)]
    try:
        for namespace in namespaces:
            _ip("netns", "add", namespace)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", switch, "link", "set", "br0", "up")
        for host in hosts:
            port = f"{host.namespace}p"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
        yield hosts
    finally:
        for namespace in namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
