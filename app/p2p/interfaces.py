"""This machine's network interfaces: which ones are fit for mDNS, and what is on their links."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import ifaddr

_SIOCGIFFLAGS = 0x8913  # <linux/sockios.h>
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_MULTICAST = 0x1, 0x8, 0x40, 0x1000  # <linux/if.h>
_VIRTUAL = ("docker", "br-", "veth", "virbr", "lxc", "lxd", "cni", "flannel", "cali", "podman", "vnet", "tap")
"""Names of interfaces that lead to containers and virtual machines of this machine, not to a LAN."""

Interface4or6 = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Interface:
    """One interface with its addresses."""

    name: str
    index: int
    addresses: tuple[Interface4or6, ...]


def suitable(names: Sequence[str]) -> tuple[Interface, ...]:
    """The interfaces to announce and look on, by name.

    Those in `names`, if any are given; else every one that is up and can multicast,
    without loopback, and without those to containers unless there is no other.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        name = str(adapter.name)
        flags = _flags(name)
        if not flags & _IFF_UP or not flags & _IFF_RUNNING:
            continue
        if names and name not in names:
            continue
        if not names and (flags & _IFF_LOOPBACK or not flags & _IFF_MULTICAST):
            continue
        addresses = tuple(_address(ip) for ip in adapter.ips)
        if addresses:
            found.append(Interface(name, adapter.index or 0, addresses))
    real = [interface for interface in found if names or not interface.name.startswith(_VIRTUAL)]
    return tuple(sorted(real or found, key=lambda interface: interface.name))


def on_link(address: str, interfaces: Sequence[Interface]) -> list[str]:
    """`address` as it can be dialled if it lies on the link of one of `interfaces`; else nothing.

    An IPv6 link-local address without a scope may be on any of them.
    """
    host, _, scope = address.partition("%")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return []
    if ip.is_multicast or ip.is_unspecified:
        return []
    if ip.version == 6 and ip.is_link_local:
        own = [interface for interface in interfaces if any(known.ip.version == 6 for known in interface.addresses)]
        return [f"{ip}%{interface.name}" for interface in own if scope in ("", interface.name, str(interface.index))]
    return [str(ip)] if any(ip in own.network for interface in interfaces for own in interface.addresses) else []


def _address(ip: ifaddr.IP) -> Interface4or6:
    host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
    return ipaddress.ip_interface(f"{host}/{ip.network_prefix}")


def _flags(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode()[:15], 0))
        except OSError:
            return 0  # it has just gone
    flags: int = struct.unpack_from("16xH", answer)[0]
    return flags
