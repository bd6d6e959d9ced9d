"""This machine's network interfaces: which ones lead to other machines, and what lies on their links."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import ifaddr

# netdevice(7)
_SIOCGIFFLAGS = 0x8913
_IFREQ = struct.Struct("16sH22x")
_UP, _LOOPBACK, _RUNNING, _MULTICAST = 0x1, 0x8, 0x40, 0x1000
# Networks that a machine has with itself: bridges of containers and virtual machines.
_OWN_NETWORKS = (
    *("docker", "br-", "podman", "cni", "flannel", "cali", "cilium", "lxcbr", "lxdbr"),
    *("virbr", "vnet", "vmnet", "vboxnet"),
)
_VETH = "veth"


@dataclass(frozen=True)
class Interface:
    """A network interface and those of its addresses that can be used."""

    name: str
    index: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]

    def senders(self) -> list[str]:
        """The addresses that zeroconf takes for this interface, one of each family.

        For IPv6 the link-local one: only what comes from such an address tells
        the receiver on which of its links the announced ones are.
        """
        v4 = [str(own.ip) for own in self.addresses if own.version == 4]
        v6 = [own.ip for own in self.addresses if own.version == 6 and not own.ip.is_loopback]
        return v4[:1] + [str(ip) for ip in sorted(v6, key=lambda ip: not ip.is_link_local)[:1]]

    def dialable(self, address: IPv4Address | IPv6Address) -> str | None:
        """`address` as it is dialled when it lies on this link, else None."""
        if isinstance(address, IPv6Address) and address.is_link_local:
            plain = str(address).partition("%")[0]
            return f"{plain}%{self.name}" if address.scope_id == str(self.index) else None
        on_link = any(address in own.network for own in self.addresses if own.version == address.version)
        return str(address) if on_link and not address.is_unspecified and not address.is_multicast else None


def suitable(named: Collection[str]) -> tuple[Interface, ...]:
    """Those in `named` that are up; without names all that reach other machines.

    A veth may be the end of a container's bridge, or the only way out of a
    container. So it counts only where there is nothing else.
    """
    usable: dict[str, Interface] = {}
    for adapter in ifaddr.get_adapters():
        name = adapter.name.partition(":")[0]  # eth0:1 is one more address of eth0
        flags = _flags(name)
        reaches_others = flags & _MULTICAST and not flags & _LOOPBACK and not name.startswith(_OWN_NETWORKS)
        if adapter.index is None or not flags & _UP or not flags & _RUNNING:
            continue
        if not (name in named if named else reaches_others):
            continue
        before = usable[name].addresses if name in usable else ()
        addresses = [_address(ip) for ip in adapter.ips if _is_bindable(ip, adapter.index)]
        usable[name] = Interface(name, adapter.index, (*before, *addresses))
    found = sorted((one for one in usable.values() if one.addresses), key=lambda one: one.index)
    proper = [one for one in found if not one.name.startswith(_VETH)]
    return tuple(found if named else proper or found)


def _flags(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        except OSError:  # it has just gone
            return 0
    flags: int = _IFREQ.unpack(answer)[1]
    return flags


def _address(ip: ifaddr.IP) -> IPv4Interface | IPv6Interface:
    return ipaddress.ip_interface(f"{ip.ip if isinstance(ip.ip, str) else ip.ip[0]}/{ip.network_prefix}")


def _is_bindable(ip: ifaddr.IP, index: int) -> bool:
    """Whether it is an address yet: a fresh IPv6 address is none until nobody else has claimed it (RFC 4862, 5.4)."""
    is_v4 = isinstance(ip.ip, str)
    with socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((ip.ip, 0) if is_v4 else (ip.ip[0], 0, 0, index))
        except OSError:
            return False
    return True
