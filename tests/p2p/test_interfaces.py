"""Goal: mDNS uses the LAN and not the bridges to containers; only what lies on our links is dialled."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import pytest

from app.p2p.interfaces import Interface, on_link
from tests.live.lan import missing

ETH0 = Interface("eth0", 3, (ipaddress.ip_interface("10.7.0.1/24"), ipaddress.ip_interface("fe80::1/64")))
WLAN0 = Interface("wlan0", 4, (ipaddress.ip_interface("192.168.1.9/24"), ipaddress.ip_interface("fd00::9/64")))
OLD = Interface("old0", 5, (ipaddress.ip_interface("172.16.0.1/16"),))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.7.0.200", ["10.7.0.200"]),
        ("10.7.1.200", []),
        ("8.8.8.8", []),
        ("192.168.1.1", ["192.168.1.1"]),
        ("fd00::1", ["fd00::1"]),
        ("2001:db8::1", []),
        ("fe80::5", ["fe80::5%eth0", "fe80::5%wlan0"]),
        ("fe80::5%3", ["fe80::5%eth0"]),
        ("fe80::5%wlan0", ["fe80::5%wlan0"]),
        ("fe80::5%9", []),
        ("127.0.0.1", []),
        ("224.0.0.1", []),
        ("0.0.0.0", []),
        ("example.com", []),
    ],
)
def test_on_link(address: str, expected: list[str]) -> None:
    assert on_link(address, [ETH0, WLAN0, OLD]) == expected


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.parametrize(
    ("links", "names", "expected"),
    [
        ("eth0 docker0 vethab12 br-1f", "", "eth0"),
        ("veth0", "", "veth0"),
        ("eth0 docker0", "docker0", "docker0"),
        ("eth0 eth1", "", "eth0 eth1"),
        ("eth0", "lo", "lo"),
        ("eth0", "none", ""),
        ("", "", ""),
    ],
)
def test_suitable(links: str, names: str, expected: str) -> None:
    """In a namespace with just these interfaces, up and with an address each, and loopback."""
    script = (
        "import os, subprocess, sys\n"
        "from app.p2p.interfaces import suitable\n"
        "run = lambda *words: subprocess.run(words, check=True)\n"
        "run('ip', 'link', 'set', 'lo', 'up')\n"
        # The other ends of the cables are elsewhere.
        "other = subprocess.Popen(['unshare', '-n', 'sh', '-c', 'echo; exec sleep 60'], stdout=subprocess.PIPE)\n"
        "other.stdout.readline()\n"
        "for number, name in enumerate(sys.argv[1].split()):\n"
        "    end = f'end{number}'\n"
        "    run('ip', 'link', 'add', name, 'type', 'veth', 'peer', 'name', end, 'netns', str(other.pid))\n"
        "    run('nsenter', '-t', str(other.pid), '-n', 'ip', 'link', 'set', end, 'up')\n"
        "    run('ip', 'link', 'set', name, 'up')\n"
        "    run('ip', 'addr', 'add', f'10.{number}.0.1/24', 'dev', name)\n"
        "print(*[interface.name for interface in suitable(sys.argv[2].split())])\n"
        "other.kill()\n"
    )
    command = ["unshare", "-n", sys.executable, "-c", script, links, names]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == expected.split()
