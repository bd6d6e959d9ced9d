"""Keys and certificates from a network's secrets, the TLS contexts that use them, and the check of a peer."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.errors import usage_error
from app.p2p.token import Network

ID_PATTERN = r"[A-Za-z0-9_-]{1,48}"
"""A worker or head id. An mDNS instance name, of at most 63 bytes, begins with it."""

# Constant, so that every member signs the same CA certificate byte for byte;
# for leaves too, so that a box without a clock can mint. Nobody checks them.
# The end is RFC 5280's "no well-defined expiration date" (4.1.2.5).
_NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_CA_SERIAL = 1
# X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h; Python has no name for it.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
# Of alerts and verdicts, those that say: your network is not mine.
_REFUSALS = re.compile(r"CERTIFICATE_VERIFY_FAILED|UNRECOGNIZED_NAME|ALERT_UNKNOWN_CA|ALERT_(BAD_|)CERTIFICATE")


class Role(Enum):
    """A side of the connection: the TLS server is always a worker, the client always a head."""

    WORKER = "worker"
    HEAD = "head"


_PEER = {Role.WORKER: Role.HEAD, Role.HEAD: Role.WORKER}
_KEY_USAGE = {Role.WORKER: ExtendedKeyUsageOID.SERVER_AUTH, Role.HEAD: ExtendedKeyUsageOID.CLIENT_AUTH}


class PeerRefused(Exception):
    """The peer's certificate is not what its side of this network must show."""


@dataclass(frozen=True)
class Authority:
    """A network's CA: every member derives the same one."""

    network: Network
    certificate: x509.Certificate
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def tag(self) -> str:
        """The network's name for everybody."""
        return self.network.tag


@dataclass(frozen=True)
class Leaf:
    """What one process shows in one network."""

    authority: Authority
    role: Role
    certificate: x509.Certificate
    key: Ed25519PrivateKey = field(repr=False)


@dataclass(frozen=True)
class Peer:
    """Who TLS proved to be at the other end."""

    authority: Authority
    role: Role
    id: str
    """The worker id or the head's own; every member can mint any."""
    key: str
    """SHA-256 of its public key, hexadecimal: tells two processes of one id apart."""


def authority(network: Network) -> Authority:
    """The CA of `network`, its certificate byte for byte the same for every member."""
    key = Ed25519PrivateKey.from_private_bytes(network.ca_seed)
    certificate = (
        _builder(network.tag, network.tag, key.public_key(), key.public_key(), _CA_SERIAL)
        # No CA below it, so that no leaf can sign a leaf.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Without a key usage OpenSSL takes the CA itself for a leaf.
        .add_extension(_usage(leaf=False), critical=True)
        .sign(key, algorithm=None)
    )
    return Authority(network, certificate, key)


def mint(authority: Authority, role: Role, id: str) -> Leaf:
    """A fresh key and its certificate for this process. Raises a usage error for an id unlike `ID_PATTERN`."""
    if not re.fullmatch(ID_PATTERN, id):
        raise usage_error("the id cannot be used", "1 to 48 letters, digits, - and _")
    key = Ed25519PrivateKey.generate()
    # A URI, because an id is not a host name: a DNS name could pass for one,
    # and has rules of its own for letters and length.
    name = x509.UniformResourceIdentifier(f"{role.value}:{id}")
    certificate = (
        _builder(authority.tag, role.value, key.public_key(), authority.key.public_key(), x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_KEY_USAGE[role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(authority.key, algorithm=None)
    )
    return Leaf(authority, role, certificate, key)


def server_context(leaves: Sequence[Leaf]) -> ssl.SSLContext:
    """A worker's side: a leaf for each network it serves. The head's SNI, a tag, chooses.

    On a connection nothing but the CA of the chosen network counts; no SNI or
    an unknown tag ends the handshake with the alert unrecognized_name (112).
    """
    contexts = {leaf.authority.tag: _context(ssl.PROTOCOL_TLS_SERVER, leaf) for leaf in leaves}
    # Holds no certificate and trusts nobody. What OpenSSL does not take over
    # from the chosen context (versions, tickets, verification) is set here too.
    entrance = _context(ssl.PROTOCOL_TLS_SERVER, None)

    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        if name not in contexts:
            return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = contexts[name]
        return None

    entrance.sni_callback = choose
    return entrance


def client_context(leaf: Leaf) -> ssl.SSLContext:
    """A head's side. Give `leaf.authority.tag` as `server_hostname`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, leaf)


def check_peer(tls: ssl.SSLObject | ssl.SSLSocket) -> Peer:
    """Who is at the other end of `tls`, a finished handshake of one of our contexts. Raises PeerRefused."""
    context = tls.context
    der = tls.getpeercert(binary_form=True)
    if not isinstance(context, _Context) or context.leaf is None or der is None:
        raise PeerRefused("the peer showed no certificate")
    return check_certificate(der, context.leaf.authority, _PEER[context.leaf.role])


def check_certificate(der: bytes, authority: Authority, role: Role) -> Peer:
    """`der` as a leaf of `authority` for `role`. Raises PeerRefused.

    OpenSSL has checked the chain; it lets pass what a member should never
    show: the CA as its own leaf, several extended key usages or none.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(authority.certificate)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        key = certificate.public_key()
    except Exception as error:  # a dozen classes with no common base, for bytes that a peer chose
        raise PeerRefused("the certificate is not one of this network's leaves") from error
    if not isinstance(key, Ed25519PublicKey) or _raw(key) == _raw(authority.key.public_key()):
        raise PeerRefused("the certificate's key is not a leaf's")
    if basic.ca or usage.key_cert_sign or not usage.digital_signature:
        raise PeerRefused("the certificate is a CA's")
    if purposes != [_KEY_USAGE[role]]:
        raise PeerRefused(f"the certificate is not a {role.value}'s")
    uri = names[0].value if len(names) == 1 and isinstance(names[0], x509.UniformResourceIdentifier) else ""
    match = re.fullmatch(f"{role.value}:({ID_PATTERN})", uri)
    if match is None:
        raise PeerRefused(f"the certificate names no {role.value}")
    return Peer(authority, role, match[1], sha256(_raw(key)).hexdigest())


def token_refused(error: ssl.SSLError) -> bool:
    """Whether `error`, of a handshake or of the first read behind it, says that the other side has another token."""
    return bool(_REFUSALS.search(error.reason or ""))


class _Context(ssl.SSLContext):
    """A context that remembers whose it is."""

    leaf: Leaf | None


def _context(protocol: int, leaf: Leaf | None) -> _Context:
    context = _Context(protocol)
    context.leaf = leaf
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the CA is the network's own: who it signed is the right peer
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.options |= ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would skip the certificates
    if leaf is not None:
        context.load_verify_locations(cadata=leaf.authority.certificate.public_bytes(Encoding.DER))
        _load_leaf(context, leaf)
    return context


def _load_leaf(context: ssl.SSLContext, leaf: Leaf) -> None:
    """load_cert_chain takes only paths: this one leads to memory and never touches a disk."""
    pem = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += leaf.certificate.public_bytes(Encoding.PEM)
    with os.fdopen(os.memfd_create("leaf", os.MFD_CLOEXEC), "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _builder(
    issuer: str, subject: str, key: Ed25519PublicKey, ca_key: Ed25519PublicKey, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        # Unused here; stricter libraries want them (RFC 5280, 4.2.1.1 and 4.2.1.2).
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key), critical=False)
    )


def _usage(leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_cert_sign=not leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
