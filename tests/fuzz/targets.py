"""All targets by name, and the inputs that were findings once."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz import carried, plain, wire
from tests.fuzz.carried import MANIFEST, archive_with
from tests.fuzz.plain import pointer_to
from tests.fuzz.target import Target

TARGETS: Mapping[str, Target] = {
    # Anybody on the LAN, before authentication.
    "first-record": Target(wire.read_first_record, wire.first_record_seeds),
    "impostor": Target(wire.read_impostor, wire.impostor_seeds),
    "announcement": Target(plain.read_announcement, plain.announcement_seeds),
    # Whoever has the token.
    "certificate": Target(plain.read_certificate, plain.certificate_seeds),
    "frames": Target(plain.read_frames, plain.frames_seeds),
    "member": Target(wire.read_member, wire.member_seeds),
    "hostile-worker": Target(wire.read_hostile_worker, wire.hostile_worker_seeds),
    # A compromised rpc-server.
    "backend": Target(wire.read_backend, wire.backend_seeds),
    "server-output": Target(plain.read_server_output, plain.server_output_seeds),
    # A library of the user's own, or a GPU's driver.
    "probe": Target(carried.read_probe, carried.probe_seeds),
    # What a person pastes, and what a disk or a copy has changed.
    "token": Target(plain.read_token, plain.token_seeds),
    "localai-token": Target(plain.read_localai_token, plain.localai_token_seeds),
    "peers": Target(plain.read_peers, plain.peers_seeds),
    "archive": Target(carried.read_archive, carried.archive_seeds),
    "manifest": Target(carried.read_manifest, carried.manifest_seeds),
    "payload": Target(carried.read_payload, carried.payload_seeds),
    "verdict": Target(carried.read_verdict, carried.verdict_seeds),
}

FOUND: Mapping[str, tuple[bytes, ...]] = {
    "announcement": (pointer_to(b"\xff" * 22),),
    "archive": (archive_with(entry_length=1), archive_with(length=1 << 31), archive_with(table_length=19)),
    "manifest": (
        b"[]",
        b"[" * 100_000,
        b'{"files": {"a": [0]}}',
        MANIFEST.to_json().replace(b"util/", b"ut\\u0000il/"),
    ),
    "peers": (b"\xff" * 200 + b":0",),
    "verdict": (b"[" * 100_000,),
}
"""By target; each of them broke something and is tried in every test run."""
