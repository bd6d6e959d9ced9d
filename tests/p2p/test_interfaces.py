"""Goal: an announced address is dialled only if it lies on a link of ours. (Which links count: test_discovery.py.)"""

from __future__ import annotations

import ipaddress

import pytest

from app.p2p.interfaces import Interface

ETH0 = Interface("eth0", 3, (ipaddress.ip_interface("10.7.0.1/24"), ipaddress.ip_interface("fe80::1/64")))
WLAN0 = Interface("wlan0", 4, (ipaddress.ip_interface("192.168.1.9/24"), ipaddress.ip_interface("fd00::9/64")))


@pytest.mark.parametrize(
    ("address", "interface", "expected"),
    [
        ("10.7.0.200", ETH0, "10.7.0.200"),
        ("10.7.1.200", ETH0, None),
        ("8.8.8.8", ETH0, None),
        ("192.168.1.1", WLAN0, "192.168.1.1"),
        ("fd00::1", WLAN0, "fd00::1"),
        ("fd00::1", ETH0, None),
        ("fe80::5%3", ETH0, "fe80::5%eth0"),
        ("fe80::5%4", ETH0, None),
        ("fe80::5", ETH0, None),
        ("127.0.0.1", ETH0, None),
        ("224.0.0.1", ETH0, None),
        ("0.0.0.0", ETH0, None),
    ],
)
def test_dialable(address: str, interface: Interface, expected: str | None) -> None:
    assert interface.dialable(ipaddress.ip_address(address)) == expected


def test_one_sender_of_each_family() -> None:
    assert ETH0.senders() == ["10.7.0.1", "fe80::1"]
    both = Interface("eth1", 5, (ipaddress.ip_interface("fd00::2/64"), ipaddress.ip_interface("fe80::2/64")))
    assert both.senders() == ["fe80::2"], "from another address the receiver could not tell the link"
    loopback = Interface("lo", 1, (ipaddress.ip_interface("127.0.0.1/8"), ipaddress.ip_interface("::1/128")))
    assert loopback.senders() == ["127.0.0.1"]
