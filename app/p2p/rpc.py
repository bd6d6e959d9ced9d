"""The few of llama.cpp's RPC messages that show that a server is well, and what it computes on.

Source: `ggml/src/ggml-rpc/ggml-rpc.cpp` of llama.cpp. A request is u8 command,
u64 size, that many bytes; an answer is u64 size, that many bytes; all integers
are little-endian. HELLO comes first on every connection. Its form, and how memory is
asked for, are of protocol 4 to 7; `Prober` knows the elder ones too.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

MAX_DEVICES = 64
"""Far more than llama.cpp has names for; a server that claims more is broken."""
MAX_MEMORY = 2**53 - 1
"""Bytes; what our own messages can carry. A backend that cannot tell may answer 2**64 - 1."""

_CAPS = 24  # RPC_CONN_CAPS_SIZE; all zero: no RDMA
_ELDER_HELLO = struct.Struct("<BBB")  # before 4.0, when the request was empty
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})\.[0-9]{1,4}")
_U64 = struct.Struct("<Q")
_HELLO = struct.Struct(f"<BBBx{_CAPS}x")  # rpc_msg_hello_rsp
_COUNT = struct.Struct("<I")  # rpc_msg_device_count_rsp
_DEVICE = struct.Struct("<I")  # rpc_msg_get_device_memory_req
_MEMORY = struct.Struct("<QQ")  # rpc_msg_get_device_memory_rsp: free, total
_WITHOUT_COUNT = ("1.", "2.")
"""Protocols whose servers have one device, which no message names."""

# Printed by ggml_backend_rpc_start_server, one line a device below "Devices:".
_LINE = re.compile(r"  (\S+): (.*) \(\d+ MiB, \d+ MiB free\)\s*")


class Command(IntEnum):
    """Of `enum rpc_cmd`, those used here. HELLO is 14 in every version, by a static_assert."""

    GET_DEVICE_MEMORY = 11
    HELLO = 14
    DEVICE_COUNT = 15


class RpcError(Exception):
    """The server did not answer in time, or not as rpc-server does."""


class RpcClosed(RpcError):
    """It ended the connection, as it does at a message that it does not know."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device."""

    total: int
    free: int


@dataclass(frozen=True)
class Probe:
    """What a server said of itself."""

    protocol: str
    """Such as `7.0.0`: clients of another major version are refused, by themselves."""
    memory: tuple[DeviceMemory, ...]
    """Of each device, in the server's order."""


@dataclass(frozen=True)
class DeviceName:
    """One device as the server prints it; RPC has no message for this."""

    name: str
    description: str


def hello(sock: socket.socket, timeout: float) -> str:
    """The protocol version of the server behind `sock`, freshly connected: proof that it is not busy.

    Raises RpcError, at the latest after `timeout` seconds. Its own time-out of `sock` is changed.
    """
    return _Conversation(sock, timeout).hello()


def probe(sock: socket.socket, timeout: float, *, elder: bool = False) -> Probe:
    """As `hello`, and then its devices' memory. The connection is of no more use afterwards.

    `elder` is for a server of a protocol before 4.0.
    """
    conversation = _Conversation(sock, timeout)
    protocol = conversation.elder_hello() if elder else conversation.hello()
    if protocol.startswith(_WITHOUT_COUNT):
        return Probe(protocol, (_memory(conversation.call(Command.GET_DEVICE_MEMORY, b"", _MEMORY.size)),))
    (count,) = _COUNT.unpack(conversation.call(Command.DEVICE_COUNT, b"", _COUNT.size))
    if count > MAX_DEVICES:
        raise RpcError(f"rpc-server claims {count} devices")
    asked = (_DEVICE.pack(device) for device in range(count))
    answers = [conversation.call(Command.GET_DEVICE_MEMORY, device, _MEMORY.size) for device in asked]
    return Probe(protocol, tuple(map(_memory, answers)))


class Prober:
    """`probe` for a server of whatever llama.cpp, from the first that has HELLO: it takes the other form the next
    time when one has ended the connection.
    """

    def __init__(self) -> None:
        self._elder = False

    def __call__(self, sock: socket.socket, timeout: float) -> Probe:
        """As `probe`."""
        try:
            return probe(sock, timeout, elder=self._elder)
        except RpcClosed:
            self._elder = not self._elder
            raise


def serves(server: str, client: str) -> bool:
    """Whether a llama.cpp of RPC protocol `client` accepts a server of `server`: the same major version, no higher
    minor one (`negotiate_hello` in ggml-rpc.cpp). What is no version serves nobody.
    """
    theirs, ours = _VERSION.fullmatch(server), _VERSION.fullmatch(client)
    return bool(theirs and ours and theirs[1] == ours[1] and int(theirs[2]) <= int(ours[2]))


def parse_devices(output: str) -> tuple[DeviceName, ...]:
    """The devices in what one run of rpc-server has printed, in the order of `Probe.memory`.

    Its stdout is buffered: they appear with its first client. Lines of stderr may
    stand between them.
    """
    _, _, below = output.partition("Devices:\n")
    found = [DeviceName(*match.groups()) for match in map(_LINE.fullmatch, below.splitlines()) if match]
    return tuple(found[:MAX_DEVICES])


def _memory(answer: bytes) -> DeviceMemory:
    free, total = (min(size, MAX_MEMORY) for size in _MEMORY.unpack(answer))
    return DeviceMemory(total=total, free=free)


class _Conversation:
    """Requests and answers on one connection, all within one time limit."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._deadline = time.monotonic() + timeout

    def hello(self) -> str:
        major, minor, patch = _HELLO.unpack(self.call(Command.HELLO, bytes(_CAPS), _HELLO.size))
        return f"{major}.{minor}.{patch}"

    def elder_hello(self) -> str:
        return ".".join(map(str, _ELDER_HELLO.unpack(self.call(Command.HELLO, b"", _ELDER_HELLO.size))))

    def call(self, command: Command, request: bytes, size: int) -> bytes:
        """The answer to `request`, which must have exactly `size` bytes."""
        try:
            self._limit()
            self._sock.sendall(bytes([command]) + _U64.pack(len(request)) + request)
            (claimed,) = _U64.unpack(self._receive(_U64.size))
            if claimed != size:
                raise RpcError(f"rpc-server answered {command.name} with {claimed} bytes in place of {size}")
            return self._receive(size)
        except ConnectionError as error:
            raise RpcClosed(f"rpc-server closed the connection at {command.name}: {error}") from error
        except OSError as error:
            raise RpcError(f"rpc-server did not answer {command.name}: {error}") from error

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._limit()
            chunk = self._sock.recv(size - len(data))
            if not chunk:
                raise RpcClosed("rpc-server closed the connection")
            data += chunk
        return data

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:  # a time-out of 0 would make the socket non-blocking
            raise RpcError("rpc-server did not answer in time")
        self._sock.settimeout(left)
