"""Targets that take bytes and no connection: frames, tokens, lists of peers, announcements, certificates, output."""

from __future__ import annotations

import base64
import os
import random
import struct
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zeroconf import RecordUpdate, ServiceInfo
from zeroconf._cache import DNSCache
from zeroconf._dns import DNSPointer
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from app.errors import ExitCode, WorkerError
from app.p2p import frames, peers, token
from app.p2p.announcement import Announcement, write
from app.p2p.browser import Browser, Sighting
from app.p2p.frames import Bye, Control, Data, Decoder, Hello, Message, Ok, Ping, Purpose, State, Status, Welcome
from app.p2p.identity import Authority, PeerRefused, Role, authority, check_certificate, mint
from app.p2p.interfaces import suitable
from app.p2p.mdns import MAX_ADDRESSES, SERVICE
from app.p2p.rpc import DeviceMemory, Probe, parse_devices
from app.p2p.server import describe
from app.p2p.server_output import ServerOutput
from tests.fuzz.target import told_to_the_user

HANG = 20.0
"""Seconds after which a target is taken to hang."""
SESSION = "0f" * 16
STATUS = Status(State.BUSY, "desk", 12, "7.0.0", (frames.Device("CPU", "Some CPU", 64 << 30, 60 << 30),))
HELLO = Hello(1, "box-1", "Box", "0.1.0", "0.5.0", "0c1e57098", "on", STATUS)
CONTROL = Control(1, SESSION, "desk", "0.1.0", Purpose.CONNECT)
OUTPUT = b"Starting RPC server\nDevices:\n  CPU: Some CPU (64000 MiB, 60000 MiB free)\nAccepted client\n"

_RESPONSE = 0x8400
_MAX_OUTPUT = 60_000
"""Bytes: less than a pipe takes without a reader."""


@cache
def network() -> Authority:
    """A network, the same in every run: a saved input must mean the same again."""
    return authority(token.network(token.parse(our_token())))


def our_token() -> str:
    """A token of our own."""
    secret = random.Random(1).randbytes(32)
    body = secret + token._checksum(secret)
    return "worker1_" + base64.b32encode(body).decode().lower()


def read_frames(data: bytes) -> bool:
    """What either side sends once TLS is up, cut anywhere."""
    step = 1 + len(data) % 7
    whole = _decode([data])
    assert whole == _decode([data[at : at + step] for at in range(0, len(data), step)])
    for message in whole[0]:
        assert _decode([frames.encode(message)])[0] == [message]
    return bool(whole[0]) and not whole[1]


def frames_seeds() -> list[bytes]:
    messages = [Welcome(1), CONTROL, Data(1, SESSION), HELLO, STATUS, Ok(), frames.Busy("desk", 3), Ping(), Bye("end")]
    return [*map(frames.encode, messages), b"".join(map(frames.encode, messages))]


def _decode(pieces: list[bytes]) -> tuple[list[Message], str]:
    decoder, found = Decoder(), []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := decoder.next(Message)) is not None:
                found.append(message)
    except frames.PeerError as error:
        return found, str(error)
    return found, ""


def read_token(data: bytes) -> bool:
    """A token as a variable, a flag or a line of a file holds it."""
    text = data.decode(errors="surrogateescape")
    taken = False
    for parse in (token.parse, token.parse_file):
        with told_to_the_user(ExitCode.USAGE):
            try:
                parse(text)
                taken = True
            except WorkerError as error:
                assert len(text.strip()) < 8 or text.strip() not in error.message
                raise
    with told_to_the_user(ExitCode.USAGE):
        token.network(token.parse(our_token()), text)
    return taken


def token_seeds() -> list[bytes]:
    return [our_token().encode(), f"# new\n{our_token()}\n\n{our_token()}\n".encode(), base64.b64encode(_yaml())]


def read_localai_token(data: bytes) -> bool:
    """A LocalAI token, from below its base64."""
    return read_token(base64.b64encode(data))


def localai_token_seeds() -> list[bytes]:
    return [_yaml()]


def _yaml() -> bytes:
    key = base64.b32encode(random.Random(2).randbytes(25)).decode()
    parts = "".join(f"  {part}:\n    interval: 360\n    key: {key}\n    length: 40\n" for part in ("dht", "crypto"))
    return f"otp:\n{parts}room: {key}\nrendezvous: {key}\nmdns: {key}\nmax_message_size: 20971520\n".encode()


def read_peers(data: bytes) -> bool:
    """`--peer`, and a file of them."""
    taken = False
    with told_to_the_user(ExitCode.USAGE):
        peer = peers.parse_peer(data.decode(errors="surrogateescape"))
        assert peers.parse_peer(str(peer)) == peer
    descriptor = os.memfd_create("peers")
    try:
        os.write(descriptor, data)
        with told_to_the_user(ExitCode.USAGE):
            taken = bool(peers.read_peers_file(Path(f"/proc/self/fd/{descriptor}")))
    finally:
        os.close(descriptor)
    return taken


def peers_seeds() -> list[bytes]:
    named = [b"10.0.0.5", b"box.lan:25052", b"[fe80::1%eth0]:25052", b"[::1]", b"fd77::1"]
    return [*named, b"# mine\n" + b"\n".join(named) + b"\n"]


def read_announcement(data: bytes) -> bool:
    """One mDNS packet, as a browser hears it: anybody on the LAN can send it."""
    packet = DNSIncoming(data)
    heard: dict[str, Sighting] = {}
    browser = Browser([network().network], lambda one: heard.update({one.instance: one}), lambda one: None)
    browser._interfaces = suitable({"lo"})
    wire: Any = SimpleNamespace(cache=DNSCache(), async_send=lambda question: question.packets())
    browser.async_update_records(wire, packet.now, [RecordUpdate(record) for record in packet.answers()])
    for sighting in heard.values():
        assert sighting.tag == network().tag
        assert 1 <= sighting.port < 65536
        assert 1 <= len(sighting.addresses) <= MAX_ADDRESSES
        assert all(text.isascii() and text.isprintable() for text in (sighting.instance, sighting.worker_id))
    browser.close()
    return bool(heard)


def pointer_to(label: bytes) -> bytes:
    """A packet that says there is a worker of that label, and no more."""
    service = b"".join(bytes([len(part)]) + part.encode() for part in SERVICE.split("."))
    header = struct.pack("!6H", 0, _RESPONSE, 0, 1, 0, 0)
    place = bytes([len(label)]) + label + struct.pack("!H", 0xC000 + len(header))
    return header + service + struct.pack("!HHIH", 12, 1, 4500, len(place)) + place


def announcement_seeds() -> list[bytes]:
    text = write(Announcement("box-1", "box-1", 25052, network().tag, 1, "7.0.0"), network().network)
    seeds = []
    for addresses in ([b"\x7f\0\0\1"], [b"\x7f\0\0\2", bytes(15) + b"\1"]):
        info = ServiceInfo(
            SERVICE, f"box-1.{SERVICE}", 25052, properties=text, server="box-1.local.", addresses=addresses
        )
        packet = DNSOutgoing(_RESPONSE)
        pointer = DNSPointer(SERVICE, 12, 1, 4500, info.name)
        for record in [pointer, info.dns_service(), info.dns_text(), *info.dns_addresses()]:
            packet.add_answer_at_time(record, 0)
        seeds += packet.packets()
    return seeds


def read_certificate(data: bytes) -> bool:
    """What a certificate says that is rightly signed: any holder of the token can sign what it likes."""
    ca = network()
    signature = b"\0" + ca.key.sign(data)
    body = data + _der(0x30, bytes.fromhex("06032b6570")) + _der(0x03, signature)
    try:
        check_certificate(_der(0x30, body), ca, Role.WORKER)
    except PeerRefused as error:
        assert str(error).isprintable()
        return False
    return True


def certificate_seeds() -> list[bytes]:
    leaves = [mint(network(), role, "box-1") for role in Role]
    return [one.tbs_certificate_bytes for one in (*(leaf.certificate for leaf in leaves), network().certificate)]


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def read_server_output(data: bytes) -> bool:
    """What rpc-server prints, through to the message that tells heads of its devices."""
    read_end, write_end = os.pipe()
    os.write(write_end, data[:_MAX_OUTPUT])
    os.close(write_end)
    lines = ServerOutput(read_end, lambda line: None).wait_for_end(HANG)
    assert all(character.isprintable() or character == "\t" for line in lines for character in line)
    names = parse_devices("".join(f"{line}\n" for line in lines))
    ready = describe(Probe("7.0.0", (DeviceMemory(1, 1),) * len(names)), names)
    frames.encode(Status(State.READY, "", 0, ready.protocol, ready.devices))
    return bool(names)


def server_output_seeds() -> list[bytes]:
    return [OUTPUT]
