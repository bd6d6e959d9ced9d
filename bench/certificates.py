"""A certificate authority and two certificates, made on the spot for the peers that want files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """PEM files; those of `client` and `server` hold certificate and key."""

    authority: Path
    client: Path
    server: Path


def make(directory: Path) -> Certificates:
    """Write fresh ones to `directory`. P-256 keys: what these peers are commonly given."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("bench authority")
    now = datetime.datetime.now(datetime.UTC)
    root = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = directory / "authority.pem"
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files = []
    for role, use in (("client", ExtendedKeyUsageOID.CLIENT_AUTH), ("server", ExtendedKeyUsageOID.SERVER_AUTH)):
        own = ec.generate_private_key(ec.SECP256R1())
        leaf = (
            x509.CertificateBuilder(name, _name(role), own.public_key(), x509.random_serial_number())
            .not_valid_before(now - _LIFE)
            .not_valid_after(now + _LIFE)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.append(directory / f"{role}.pem")
        files[-1].write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + private)
        files[-1].chmod(0o600)
    return Certificates(authority, *files)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
