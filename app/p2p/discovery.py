"""Announce a worker and look for workers by mDNS; the static peers that do without it.

All of it is public, and what is heard are hints where to dial: who answers there,
TLS proves. Where mDNS fails (no network, its port taken) that is logged, never raised.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ifaddr
from zeroconf import BadTypeInNameException, DNSQuestionType, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from app.errors import usage_error
from app.options import DEFAULT_PORT
from app.p2p.identity import ID_PATTERN

SERVICE = "_llamarpc._tcp.local."
MAX_SIGHTINGS = 512
"""Announcements remembered at a time: more than a LAN has workers, and little memory when somebody invents them."""
MAX_ADDRESSES = 16
"""Of one worker."""
MAX_QUESTIONS = 16
"""Incomplete announcements asked about at a time. Ours are complete, and so are most others'."""
MAX_PEERS_FILE = 64 * 1024

RESCAN = 2.0
"""Seconds between two looks at the interfaces: a new address is announced well within ten."""
ASK_AGAIN = 60.0
"""Seconds after which a browser asks anew. zeroconf's does so in its first 14 s only, and Wi-Fi loses multicast."""
QUESTION_TIMEOUT_MS = 3000
CALL_TIMEOUT = 5.0
"""Seconds for a call into zeroconf's own thread, which never waits for the network there."""
CLOSE_TIMEOUT = 3.0
"""Seconds for the goodbye, which is sent three times within a quarter of one."""

# What is remembered of a worker that ended without a goodbye is a dead hint, so
# make it short: the least that zeroconf accepts (RFC 6762, 10, suggests 4500).
_TTL = 1125
_MDNS_PORT = 5353
_PORTS = range(1, 65536)
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_RPC = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")
_HOST = re.compile(r"[^\s,/@\[\]]{1,253}")

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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """What one announcement says, checked for form and for nothing else.

    A worker of one id may be sighted several times: it is announced anew after
    every start, and cloned machines share an id.
    """

    instance: str
    """Tells announcements apart."""
    worker_id: str
    addresses: tuple[str, ...]
    """Numeric and on one of our links, IPv4 first; link-local ones with `%interface`."""
    port: int
    tag: str
    protocol: int
    rpc: str
    """llama.cpp's RPC protocol, such as `7.0.0`."""


@dataclass(frozen=True)
class Peer:
    """A worker that the user named."""

    host: str
    port: int


def parse_peer(text: str, default_port: int = DEFAULT_PORT) -> Peer:
    """`host`, `host:port`, `[v6]:port`, `[v6]` or a bare IPv6 address. Raises a usage error."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        good = bool(bracket) and _is_ipv6(host)
    elif _is_ipv6(text):
        host, rest, good = text, "", True
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
        good = _HOST.fullmatch(host) is not None
    if not good:
        raise usage_error(f"not a peer: {text!r}", "peers are given as HOST:PORT, IPv6 addresses as [ADDR]:PORT")
    if not rest:
        return Peer(host, default_port)
    if not re.fullmatch(":[0-9]{1,5}", rest) or int(rest[1:]) not in _PORTS:
        raise usage_error(f"not a port: {rest[1:]!r} in the peer {text!r}", "ports are numbers from 1 to 65535")
    return Peer(host, int(rest[1:]))


def read_peers_file(path: str | Path) -> tuple[Peer, ...]:
    """The peers in a file, one a line; blank lines and what follows `#` are ignored. Raises a usage error."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_PEERS_FILE + 1).decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise usage_error(f"cannot read the peers file {path}: {reason}", "correct --peers-file") from None
    except UnicodeDecodeError:
        raise usage_error(f"the peers file {path} is not text", "one HOST:PORT a line") from None
    if len(text) > MAX_PEERS_FILE:
        raise usage_error(f"the peers file {path} is longer than {MAX_PEERS_FILE} bytes", "was a wrong file given?")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(dict.fromkeys(parse_peer(line) for line in lines if line))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


@dataclass(frozen=True)
class _Interface:
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


def _interfaces(named: Collection[str]) -> tuple[_Interface, ...]:
    """Those in `named` that are up; without names all that reach other machines.

    A veth may be the end of a container's bridge, or the only way out of a
    container. So it counts only where there is nothing else.
    """
    usable: dict[str, _Interface] = {}
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
        usable[name] = _Interface(name, adapter.index, (*before, *addresses))
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


class _Mdns:
    """A Zeroconf on the suitable interfaces, kept in step with them by a thread.

    That thread alone calls zeroconf: whoever wants something of it changes what
    `_work` looks at and wakes it.
    """

    def __init__(self, interfaces: Collection[str], enabled: bool) -> None:
        self._named = frozenset(interfaces)
        self._enabled = enabled
        self._interfaces: tuple[_Interface, ...] = ()
        self._zeroconf: Zeroconf | None = None
        self._trouble = ""
        self._stopping = False
        self._awake = Event()
        self._thread = Thread(target=self._run, name="mdns", daemon=True)

    def _work(self, zeroconf: Zeroconf) -> None:
        """Bring about what is wanted."""
        raise NotImplementedError

    def _finish(self, zeroconf: Zeroconf) -> None:
        """Before `zeroconf` says goodbye and is closed."""
        raise NotImplementedError

    def _wake(self) -> None:
        if self._enabled and not self._thread.is_alive() and not self._stopping:
            # What zeroconf has to say is what any packet makes it say, or what we say better.
            logging.getLogger("zeroconf").setLevel(logging.CRITICAL + 1)
            logging.getLogger("asyncio").setLevel(logging.WARNING)
            self._thread.start()
        self._awake.set()

    def close(self) -> None:
        """End it, with a goodbye; not from a callback."""
        self._stopping = True
        self._awake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while not self._stopping:
            self._awake.clear()
            self._guard(self._step)
            if not self._stopping:
                self._awake.wait(RESCAN)
        self._guard(self._shut)

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # whatever zeroconf meets, static peers must go on
            self._warn(str(error) or type(error).__name__)

    def _warn(self, trouble: str) -> None:
        """Once for each trouble, not every time it is met."""
        if trouble not in ("", self._trouble):
            log.warning("mDNS does not work, only static peers do: %s", trouble)
        elif self._trouble and not trouble:
            log.info("mDNS works now")
        self._trouble = trouble

    def _step(self) -> None:
        interfaces = _interfaces(self._named)
        if interfaces != self._interfaces:
            # Begin anew. What was heard on the old links is no hint any more, and
            # while it is remembered nobody would say it again (RFC 6762, 7.1).
            self._shut()
            self._interfaces = interfaces
        if not interfaces:
            self._warn(f"no usable network interface{' of the given name' if self._named else ''}")
            return
        if self._zeroconf is None:
            self._zeroconf = _open([sender for one in interfaces for sender in one.senders()])
            log.debug("mDNS on %s", ", ".join(one.name for one in interfaces))
        self._warn("")
        self._work(self._zeroconf)

    def _shut(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            self._finish(zeroconf)
            zeroconf.close()


def _open(senders: list[str]) -> Zeroconf:
    # zeroconf would leave its socket open when that fails.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", _MDNS_PORT))
        except OSError as error:
            raise OSError(f"udp port {_MDNS_PORT}: {(error.strerror or str(error)).lower()}") from None
    return Zeroconf(interfaces=senders, use_asyncio=False)


def _call(zeroconf: Zeroconf, coroutine: Coroutine[Any, Any, Any]) -> None:
    assert zeroconf.loop is not None
    asyncio.run_coroutine_threadsafe(coroutine, zeroconf.loop).result(CALL_TIMEOUT)


@dataclass(frozen=True)
class _Statement:
    """What is announced at a time."""

    labels: tuple[str, ...]
    """One for each network."""
    rpc: str


class Announcer(_Mdns):
    """Says on the LAN that a worker is here, once for each network it serves; all calls return at once.

    Instance and host name are the worker id and a number drawn anew each time:
    cloned machines of one id do not deny each other's records, a late goodbye
    cannot take back a later announcement, and probing for a namesake first, which
    takes zeroconf 1.5 s, would find none.
    """

    def __init__(
        self,
        worker_id: str,
        tags: Sequence[str],
        *,
        port: int,
        protocol: int,
        interfaces: Collection[str] = (),
        advertise: str | None = None,
        enabled: bool = True,
    ) -> None:
        """`advertise`, ADDR[:PORT], is announced in place of the machine's own; a usage error when it is no address."""
        super().__init__(interfaces, enabled)
        self._worker_id = worker_id
        self._tags = tuple(tags)
        self._port = port
        self._protocol = protocol
        self._advertised = ""
        if advertise is not None:
            peer = parse_peer(advertise, port)
            self._advertised, self._port = _numeric(peer.host), peer.port
        self._wanted: _Statement | None = None
        self._said: _Statement | None = None
        self._announcing: list[asyncio.Future[Any]] = []

    def announce(self, rpc: str) -> None:
        """Say that the worker serves llama.cpp's RPC protocol `rpc`, until `withdraw` or `close`."""
        labels = tuple(f"{self._worker_id}-{secrets.token_hex(4)}" for _ in self._tags)
        self._wanted = _Statement(labels, rpc)
        self._wake()

    def withdraw(self) -> None:
        """Say goodbye. Heads keep the connections they have."""
        self._wanted = None
        if self._thread.is_alive():
            self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        said, wanted = self._said, self._wanted
        if said != wanted:
            self._said = wanted
            _call(zeroconf, self._say(zeroconf, said, wanted))

    async def _say(self, zeroconf: Zeroconf, said: _Statement | None, wanted: _Statement | None) -> None:
        """In zeroconf's thread."""
        self._hush()
        for info in self._infos(said):
            await zeroconf.async_unregister_service(info)
        for info in self._infos(wanted):
            registered = zeroconf.async_register_service(info, cooperating_responders=True)
            self._announcing.append(asyncio.ensure_future(await registered))

    def _hush(self) -> None:
        """An announcement is sent three times, and zeroconf would send the last one behind a goodbye."""
        for announcing in self._announcing:
            announcing.cancel()
        self._announcing.clear()

    def _finish(self, zeroconf: Zeroconf) -> None:
        self._said = None
        if zeroconf.loop is not None:
            zeroconf.loop.call_soon_threadsafe(self._hush)

    def _infos(self, statement: _Statement | None) -> list[ServiceInfo]:
        if statement is None:
            return []
        own = [str(address.ip) for one in self._interfaces for address in one.addresses]
        addresses = [self._advertised] if self._advertised else own[:MAX_ADDRESSES]
        return [
            ServiceInfo(
                SERVICE,
                f"{label}.{SERVICE}",
                self._port,
                properties={"v": str(self._protocol), "tag": tag, "id": self._worker_id, "rpc": statement.rpc},
                server=f"{label}.local.",  # the machine's own name is nobody's business
                other_ttl=_TTL,
                parsed_addresses=addresses,
            )
            for label, tag in zip(statement.labels, self._tags, strict=True)
        ]


def _numeric(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        raise usage_error(
            f"--advertise wants an address, not {host!r}", "such as --advertise 192.168.1.5:25052"
        ) from None


class Browser(_Mdns, ServiceListener):
    """Watches the workers that announce one of `tags`.

    `found` is called with each sighting and with each change of one; `gone` when it
    says goodbye, expires, makes room for a newer one, or our own links change: then
    drop the hint, and no live connection. Neither call may take long or call back.
    """

    def __init__(
        self,
        tags: Collection[str],
        found: Callable[[Sighting], None],
        gone: Callable[[Sighting], None],
        *,
        interfaces: Collection[str] = (),
        enabled: bool = True,
    ) -> None:
        super().__init__(interfaces, enabled)
        self._tags = frozenset(tags)
        self._found = found
        self._gone = gone
        self._sightings: dict[str, Sighting] = {}
        self._asking: dict[str, Future[bool]] = {}
        self._browser: ServiceBrowser | None = None
        self._ask_at = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._wake()

    def _work(self, zeroconf: Zeroconf) -> None:
        now = time.monotonic()
        if self._browser is not None and now >= self._ask_at:
            self._browser.cancel()
            self._browser = None
        if self._browser is None:
            # Answers for one program would go astray where several on a machine share the port (RFC 6762, 15.1).
            self._browser = ServiceBrowser(zeroconf, SERVICE, listener=self, question_type=DNSQuestionType.QM)
            self._ask_at = now + ASK_AGAIN

    def _finish(self, zeroconf: Zeroconf) -> None:  # noqa: ARG002 - the browser knows it
        if self._browser is not None:
            self._browser.cancel()
            self._browser = None
        for question in list(self._asking.values()):
            question.cancel()
        for name in [] if self._stopping else list(self._sightings):
            self._lose(name)

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002 - zeroconf's signature
        """Called by zeroconf."""
        self._heard(zc, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        """Called by zeroconf."""
        self._heard(zc, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        """Called by zeroconf."""
        self._heard(None, name)

    def _heard(self, zeroconf: Zeroconf | None, name: str) -> None:
        try:
            if zeroconf is None:
                self._lose(name)
            else:
                self._look(zeroconf, name)
        except Exception:  # one announcement must not end the thread that hears the others
            log.exception("an announcement could not be handled")

    def _look(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = ServiceInfo(SERVICE, name)
        except BadTypeInNameException:
            return
        if not info.load_from_cache(zeroconf):
            if name not in self._sightings:  # else its address records are old, and no news
                self._ask(zeroconf, info)
            return
        sighting = self._read(info)
        if sighting is None:
            self._lose(name)
        elif sighting != self._sightings.get(name):
            if name not in self._sightings and len(self._sightings) >= MAX_SIGHTINGS:
                # The oldest has had its chance to be dialled; a newcomer may be genuine.
                self._lose(next(iter(self._sightings)))
            self._sightings[name] = sighting
            self._found(sighting)

    def _lose(self, name: str) -> None:
        sighting = self._sightings.pop(name, None)
        if sighting is not None:
            self._gone(sighting)

    def _ask(self, zeroconf: Zeroconf, info: ServiceInfo) -> None:
        """Ask for the records that are missing; zeroconf calls `update_service` for each that comes."""
        name = info.name
        if name in self._asking or len(self._asking) >= MAX_QUESTIONS or zeroconf.loop is None:
            return
        request = info.async_request(zeroconf, QUESTION_TIMEOUT_MS, DNSQuestionType.QM)
        question = self._asking[name] = asyncio.run_coroutine_threadsafe(request, zeroconf.loop)
        question.add_done_callback(lambda _: self._asking.pop(name, None))

    def _read(self, info: ServiceInfo) -> Sighting | None:
        """What the announcement says; None when it is not of our network or not one of ours."""
        instance = info.get_name()
        text = {key: value.decode("ascii", "replace") for key, value in info.properties.items() if value is not None}
        tag, worker_id, rpc, version = (text.get(key, "") for key in (b"tag", b"id", b"rpc", b"v"))
        port = info.port or 0
        if tag not in self._tags or port not in _PORTS or not _LABEL.fullmatch(instance):
            return None
        if not (re.fullmatch(ID_PATTERN, worker_id) and _RPC.fullmatch(rpc) and re.fullmatch("[0-9]{1,4}", version)):
            return None
        heard = [ipaddress.ip_address(address) for address in info.parsed_scoped_addresses()[: 4 * MAX_ADDRESSES]]
        heard.sort(key=lambda address: (address.version, address.is_link_local))
        dialable = [one.dialable(address) for address in heard for one in self._interfaces]
        addresses = tuple(dict.fromkeys(address for address in dialable if address is not None))[:MAX_ADDRESSES]
        return Sighting(instance, worker_id, addresses, port, tag, int(version), rpc) if addresses else None
