"""Goal: a well server is recognised, a busy or hostile one is left in time, and its devices are named."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.launch import ServerCommand
from app.p2p import frames, records, rpc
from app.p2p.rpc import DeviceMemory, DeviceName, Probe, RpcError

HANG = 30.0
"""Seconds after which a test is taken to hang."""


def answer(body: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(body) if claimed is None else claimed) + body


HELLO = answer(bytes([7, 0, 0, 0]) + bytes(24))


@contextmanager
def scripted(*answers: bytes) -> Iterator[tuple[socket.socket, bytearray]]:
    """A server that says all of `answers` at once and hangs up when it has heard the end; what it heard."""
    ours, theirs = socket.socketpair()
    heard = bytearray()

    def serve() -> None:
        theirs.sendall(b"".join(answers))
        with suppress(ConnectionResetError):  # a client that has heard enough leaves the rest unread
            while data := theirs.recv(4096):
                heard.extend(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with closing(ours):
            yield ours, heard
    finally:
        thread.join(HANG)
        theirs.close()


def test_a_probe_sends_what_ggml_expects_and_reads_the_answers() -> None:
    count, first, second = struct.pack("<I", 2), struct.pack("<QQ", 1, 2), struct.pack("<QQ", 3, 4)
    with scripted(HELLO, answer(count), answer(first), answer(second)) as (sock, heard):
        assert rpc.probe(sock, HANG) == Probe("7.0.0", (DeviceMemory(total=2, free=1), DeviceMemory(total=4, free=3)))
    assert heard.hex() == (
        "0e" "1800000000000000" + "00" * 24 + "0f" "0000000000000000"
        "0b" "0400000000000000" "00000000" "0b" "0400000000000000" "01000000"
    )  # fmt: skip


def test_a_hello_is_one_message_and_tells_the_version() -> None:
    with scripted(answer(bytes([12, 34, 56, 0]) + b"\xff" * 24)) as (sock, heard):
        assert rpc.hello(sock, HANG) == "12.34.56"
    assert len(heard) == 33


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("HELLO with 18446744073709551615 bytes", [answer(b"", 2**64 - 1)]),
        ("HELLO with 3 bytes", [answer(bytes(3))]),
        ("HELLO with 29 bytes", [answer(bytes(29))]),
        ("claims 65 devices", [HELLO, answer(struct.pack("<I", rpc.MAX_DEVICES + 1))]),
        ("claims 4294967295 devices", [HELLO, answer(struct.pack("<I", 2**32 - 1))]),
        ("DEVICE_COUNT with 8 bytes", [HELLO, answer(bytes(8))]),
        ("GET_DEVICE_MEMORY with 65536 bytes", [HELLO, answer(struct.pack("<I", 1)), answer(bytes(2**16))]),
        ("HELLO with", [b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
    ],
)
def test_an_answer_of_the_wrong_size_is_refused(said: str, answers: list[bytes]) -> None:
    with scripted(*answers) as (sock, _), pytest.raises(RpcError, match=said):
        rpc.probe(sock, HANG)


def test_a_server_that_hangs_up_is_an_error_at_every_byte() -> None:
    whole = HELLO + answer(struct.pack("<I", 1)) + answer(struct.pack("<QQ", 1, 2))
    for cut in range(len(whole)):
        ours, theirs = socket.socketpair()
        with closing(ours):
            theirs.sendall(whole[:cut])
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(RpcError):
                rpc.probe(ours, HANG)
            theirs.close()
    with scripted(whole) as (sock, _):
        rpc.probe(sock, HANG)


def test_a_server_that_never_answers_is_left_in_time() -> None:
    with scripted() as (sock, _), pytest.raises(RpcError):
        rpc.hello(sock, 0.05)


def test_a_server_that_dribbles_does_not_get_more_time_for_it() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def dribble() -> None:
        for byte in HELLO * 1000:
            if stop.wait(0.02):
                return
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=dribble)
    with closing(ours), closing(theirs):
        thread.start()
        begun = time.monotonic()
        # Byte by byte the hello takes 0.7 s, and no byte is ever late.
        with pytest.raises(RpcError, match=r"in time|timed out"):
            rpc.hello(ours, 0.2)
        assert time.monotonic() - begun < HANG
        stop.set()
        thread.join(HANG)


class Elder:
    """A server of an elder protocol: it ends a connection whose HELLO is not empty, and serves one client at a time."""

    def __init__(self, version: tuple[int, int, int]) -> None:
        memory = (b"\x0b" + struct.pack("<Q", 0), struct.pack("<QQ", 1, 2))
        if version >= (3, 0, 0):
            memory = (b"\x0b" + struct.pack("<QI", 4, 0), struct.pack("<QQ", 1, 2))
        self.script = [
            (b"\x0e" + struct.pack("<Q", 0), bytes(version)),
            *([(b"\x0f" + struct.pack("<Q", 0), struct.pack("<I", 1))] if version >= (3, 0, 0) else []),
            memory,
        ]

    def probe(self, prober: rpc.Prober) -> Probe:
        ours, theirs = socket.socketpair()
        with closing(ours), closing(theirs):
            thread = threading.Thread(target=self._serve, args=(theirs,))
            thread.start()
            try:
                return prober(ours, HANG)
            finally:
                ours.shutdown(socket.SHUT_RDWR)
                thread.join(HANG)

    def _serve(self, sock: socket.socket) -> None:
        for request, body in self.script:
            if sock.recv(len(request), socket.MSG_WAITALL) != request:
                sock.shutdown(socket.SHUT_RDWR)
                return
            sock.sendall(answer(body))


@pytest.mark.parametrize("version", [(1, 0, 0), (2, 0, 0), (3, 6, 1)])
def test_an_elder_server_is_known_at_the_second_try_and_from_then_on(version: tuple[int, int, int]) -> None:
    prober = rpc.Prober()
    elder = Elder(version)
    with pytest.raises(RpcError, match="closed the connection"):
        elder.probe(prober)
    expected = Probe(".".join(map(str, version)), (DeviceMemory(total=2, free=1),))
    assert [elder.probe(prober), elder.probe(prober)] == [expected, expected]


def test_a_newer_server_is_known_at_once_and_silence_is_no_reason_to_change() -> None:
    prober = rpc.Prober()
    with scripted() as (sock, _), pytest.raises(RpcError):
        prober(sock, 0.05)
    with scripted(answer(bytes([9, 1, 2, 0]) + bytes(24)), answer(bytes(4))) as (sock, _):
        assert prober(sock, HANG) == Probe("9.1.2", ())


@pytest.mark.parametrize(
    ("server", "client", "accepted"),
    [
        ("7.0.0", "7.0.0", True),
        ("7.0.5", "7.0.0", True),
        ("7.0.0", "7.2.0", True),
        ("7.9.0", "7.10.0", True),
        ("7.1.0", "7.0.0", False),
        ("4.0.1", "7.0.0", False),
        ("70.0.0", "7.0.0", False),
        ("", "7.0.0", False),
        ("7", "7.0.0", False),
    ],
)
def test_whom_llama_cpp_accepts(server: str, client: str, accepted: bool) -> None:
    assert rpc.serves(server, client) is accepted


def test_a_memory_that_the_backend_cannot_tell_still_fits_our_messages() -> None:
    with scripted(HELLO, answer(struct.pack("<I", 1)), answer(b"\xff" * 16)) as (sock, _):
        (memory,) = rpc.probe(sock, HANG).memory
    assert memory == DeviceMemory(rpc.MAX_MEMORY, rpc.MAX_MEMORY)
    status = frames.Status(frames.State.READY, "", 0, "7.0.0", (frames.Device("a", "b", memory.total, memory.free),))
    frames.encode(status)


def test_the_bounds_agree_with_those_of_our_messages() -> None:
    assert rpc.MAX_DEVICES <= frames.MAX_DEVICES
    assert rpc.MAX_MEMORY <= records.MAX_NUMBER


OUTPUT = """Starting RPC server v7.0.0
  endpoint       : 127.0.0.1:50052
  local cache    : n/a
Devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24217 MiB, 23776 MiB free)
ggml_cuda_init: something on stderr (1 of 2)
  Vulkan1: AMD Radeon (TM) Graphics (RADV RENOIR): iGPU (16 MiB, 0 MiB free)
  RPC[10.0.0.1:50052]: remote (1 MiB, 1 MiB free)
  transport      : TCP
Accepted client connection
"""


def test_devices_are_read_from_what_the_server_prints() -> None:
    assert rpc.parse_devices(OUTPUT) == (
        DeviceName("CUDA0", "NVIDIA GeForce RTX 4090"),
        DeviceName("Vulkan1", "AMD Radeon (TM) Graphics (RADV RENOIR): iGPU"),
        DeviceName("RPC[10.0.0.1:50052]", "remote"),
    )


def test_no_device_is_read_from_elsewhere() -> None:
    assert rpc.parse_devices("") == ()
    assert rpc.parse_devices("  CPU: x (1 MiB, 1 MiB free)\n") == (), "the list of an unknown --device"
    assert len(rpc.parse_devices("Devices:\n" + "  A: b (1 MiB, 1 MiB free)\n" * 1000)) == rpc.MAX_DEVICES


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_output_is_read(before: str, after: str) -> None:
    rpc.parse_devices(f"{before}Devices:\n{after}")


@dataclass
class Running:
    port: int
    output: Path

    def dial(self) -> socket.socket:
        deadline = time.monotonic() + HANG
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), HANG)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@pytest.fixture
def real_server(rpc_server: ServerCommand, tmp_path: Path) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*rpc_server.argv, "--host", "127.0.0.1", "--port", str(port)],
            env=rpc_server.env,
            cwd=rpc_server.cwd,
            stdout=file,
            stderr=file,
            # Python ignores SIGPIPE, and so must the server: it sends without
            # MSG_NOSIGNAL and dies when a client left before its answer.
            restore_signals=False,
        )
    try:
        yield Running(port, output)
    finally:
        process.kill()
        process.wait(HANG)


def test_the_real_server_is_probed_again_and_again(real_server: Running) -> None:
    for _ in range(20):
        with real_server.dial() as sock:
            found = rpc.probe(sock, HANG)
        assert found.protocol.count(".") == 2
        assert all(0 < memory.free <= memory.total for memory in found.memory)
    names = rpc.parse_devices(real_server.output.read_text())
    assert len(names) == len(found.memory) >= 1
    assert all(name.name and name.description for name in names)


def test_the_real_server_with_a_client_on_it_does_not_answer_a_second_one(real_server: Running) -> None:
    with real_server.dial() as first:
        rpc.hello(first, HANG)
        with real_server.dial() as second, pytest.raises(RpcError):
            rpc.hello(second, 0.3)
    with real_server.dial() as third:
        rpc.hello(third, HANG)
