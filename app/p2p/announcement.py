"""What a worker says of itself by mDNS, and the proof that a member of its network says it.

Everybody on the LAN hears it and can say the same again, but nobody without the token
can say another thing. Where it leads (its A and AAAA records) is not proved: that is a
hint, and TLS proves who answers there.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.p2p.identity import ID_PATTERN
from app.p2p.token import Network

INSTANCE_PATTERN = r"[a-z0-9_-]{1,63}"
"""Of an instance name in lower case."""

_PORTS = range(1, 65536)
_VERSION = re.compile(r"[0-9]{1,4}")
_RPC = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")
# Of HMAC-SHA256, as in RFC 4868: 2^128 tries are out of reach, and TXT stays short.
_PROOF_BYTES = 16


@dataclass(frozen=True)
class Announcement:
    """One worker in one network, from one start of its server to the end of that."""

    instance: str
    """Tells announcements apart; in lower case, for DNS takes no notice of it."""
    worker_id: str
    port: int
    tag: str
    """Of the network."""
    protocol: int
    """Of ours, the highest that the worker speaks."""
    rpc: str
    """llama.cpp's RPC protocol, such as `7.0.0`."""


def write(announcement: Announcement, network: Network) -> dict[str, str]:
    """The TXT record of it; instance and port have records of their own."""
    return {
        "v": str(announcement.protocol),
        "tag": network.tag,
        "id": announcement.worker_id,
        "rpc": announcement.rpc,
        "mac": _proof(announcement, network),
    }


def read(
    networks: Iterable[Network], instance: str, port: int | None, properties: Mapping[bytes, bytes | None]
) -> Announcement | None:
    """The announcement of that instance, port and TXT record; None when none of `networks` has made it."""
    text = {key: value.decode("ascii", "replace") for key, value in properties.items() if value is not None}
    tag, worker_id, rpc, version, proof = (text.get(key, "") for key in (b"tag", b"id", b"rpc", b"v", b"mac"))
    network = next((network for network in networks if network.tag == tag), None)
    if network is None or port is None or port not in _PORTS or not re.fullmatch(INSTANCE_PATTERN, instance.lower()):
        return None
    if not (re.fullmatch(ID_PATTERN, worker_id) and _RPC.fullmatch(rpc) and _VERSION.fullmatch(version)):
        return None
    announcement = Announcement(instance.lower(), worker_id, port, tag, int(version), rpc)
    # As bytes: compare_digest refuses a str that is not ASCII.
    proved = hmac.compare_digest(proof.encode(), _proof(announcement, network).encode())
    return announcement if proved else None


def _proof(said: Announcement, network: Network) -> str:
    """No value holds a line feed, so no two announcements are the same text."""
    text = f"{said.instance}\n{said.worker_id}\n{said.port}\n{said.protocol}\n{said.rpc}"
    return hmac.digest(network.announcement_key, text.encode(), "sha256")[:_PROOF_BYTES].hex()
