"""Goal: two members of a network prove themselves to each other, and nobody else gets through, in either direction.

Real TLS throughout, in memory: each test joins a head's context to a worker's.
"""

from __future__ import annotations

import base64
import gc
import os
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.errors import ExitCode, WorkerError
from app.p2p import identity
from app.p2p.identity import Authority, Leaf, PeerRefused, Role
from app.p2p.token import generate, network, parse

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def new_authority(network_id: str = "") -> Authority:
    return identity.authority(network(parse(generate()), network_id))


OURS, OTHER = new_authority(), new_authority()
WORKER, HEAD = identity.mint(OURS, Role.WORKER, "box-1"), identity.mint(OURS, Role.HEAD, "desk")


@dataclass
class End:
    """One side of a connection in memory."""

    tls: ssl.SSLObject
    done: bool = False
    error: ssl.SSLError | None = None

    def step(self) -> None:
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error

    def read(self) -> bytes:
        try:
            return self.tls.read(100)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            self.error = error
            return b""


def join(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
) -> tuple[End, End]:
    """Both ends after the handshake, be it finished or broken; the head has read what came behind it."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    head = End(client.wrap_bio(down, up, server_hostname=name, session=session))
    worker = End(server.wrap_bio(up, down, server_side=True))
    for _ in range(6):
        for end in (head, worker):
            if not end.done and end.error is None:
                end.step()
    if worker.done:
        worker.tls.write(b"welcome")
    if head.done and head.read() != b"welcome":
        # A head believes too early: only the worker's first byte tells it that it was let in.
        head.done = False
    return head, worker


def talk(head: Leaf, worker: Leaf, name: str | None = None) -> tuple[End, End]:
    client, server = identity.client_context(head), identity.server_context([worker])
    return join(client, server, worker.authority.tag if name is None else name)


def careless(leaf: Leaf | None) -> ssl.SSLContext:
    """A head that looks at no certificate, so that it is the worker that must refuse."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if leaf is not None:
        identity._load_leaf(context, leaf)
    return context


def careless_server(leaf: Leaf) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity._load_leaf(context, leaf)
    return context


def forge(
    signer: Leaf | Authority,
    role: Role,
    purposes: list[x509.ObjectIdentifier] | None = None,
    ca: bool = False,
    key_usage: bool = True,
    key: ed25519.Ed25519PrivateKey | None = None,
    uris: tuple[str, ...] = ("",),
    start: datetime = datetime(2020, 1, 1, tzinfo=UTC),
    end: datetime = datetime(2090, 1, 1, tzinfo=UTC),
) -> Leaf:
    """A leaf as a member with the CA key, or a leaf's key, could make it."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    authority = signer if isinstance(signer, Authority) else signer.authority
    builder = (
        x509.CertificateBuilder()
        .issuer_name(signer.certificate.subject)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if key_usage:
        builder = builder.add_extension(identity._usage(leaf=True), critical=True)
    purposes = [SERVER if role is Role.WORKER else CLIENT] if purposes is None else purposes
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
    if uris:
        names = [x509.UniformResourceIdentifier(uri or f"{role.value}:forged") for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Leaf(authority, role, builder.sign(signer.key, algorithm=None), key)


def der(leaf: Leaf) -> bytes:
    return leaf.certificate.public_bytes(Encoding.DER)


def test_two_members_of_a_network_know_each_other_by_name_and_key() -> None:
    head, worker = talk(HEAD, WORKER)
    assert head.done and worker.done
    assert head.tls.version() == "TLSv1.3"
    seen_by_head, seen_by_worker = identity.check_peer(head.tls), identity.check_peer(worker.tls)
    assert (seen_by_head.role, seen_by_head.id) == (Role.WORKER, "box-1")
    assert (seen_by_worker.role, seen_by_worker.id) == (Role.HEAD, "desk")
    twin = identity.mint(OURS, Role.WORKER, "box-1")
    assert identity.check_peer(talk(HEAD, twin)[0].tls).key != seen_by_head.key, "two workers of one id"
    assert identity.check_peer(talk(HEAD, WORKER)[0].tls) == seen_by_head


def test_members_that_derived_the_network_apart_interoperate() -> None:
    secret = parse(generate())
    mine, theirs = (identity.authority(network(secret, "lab")) for _ in range(2))
    assert mine.certificate.public_bytes(Encoding.DER) == theirs.certificate.public_bytes(Encoding.DER)
    head, worker = talk(identity.mint(mine, Role.HEAD, "a"), identity.mint(theirs, Role.WORKER, "b"))
    assert head.done and worker.done


def test_a_head_with_another_token_is_refused_by_name() -> None:
    head, worker = talk(identity.mint(OTHER, Role.HEAD, "x"), WORKER, OTHER.tag)
    assert not head.done and not worker.done
    assert head.error is not None
    assert identity.token_refused(head.error)


@pytest.mark.parametrize("name", [None, "unknown", OTHER.tag])
def test_a_server_name_that_is_no_tag_of_ours_ends_the_handshake_with_an_alert(name: str | None) -> None:
    head, worker = join(careless(HEAD), identity.server_context([WORKER]), name)
    assert not worker.done and not head.done
    assert head.error is not None
    assert "UNRECOGNIZED_NAME" in head.error.reason


def test_a_server_name_that_is_not_text_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # CPython hands such a failure to sys.unraisablehook, which by default prints a traceback.
    caught: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: caught.append(failure.exc_type))
    hello, worker = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        careless(HEAD).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="zzzzzzzz").do_handshake()
    worker.write(hello.read().replace(b"zzzzzzzz", b"\xff" * 8))
    server = End(identity.server_context([WORKER]).wrap_bio(worker, ssl.MemoryBIO(), server_side=True))
    server.step()
    assert server.error is not None
    assert caught == [UnicodeDecodeError]


def test_a_leaf_of_another_network_is_refused_both_ways() -> None:
    stranger = identity.mint(OTHER, Role.HEAD, "x")
    head, worker = join(careless(stranger), identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done
    assert head.error is not None
    assert identity.token_refused(head.error)

    impostor = identity.mint(OTHER, Role.WORKER, "box-1")
    head, _ = join(identity.client_context(HEAD), careless_server(impostor), OURS.tag)
    assert not head.done
    assert head.error is not None
    assert identity.token_refused(head.error)


def test_a_head_without_a_certificate_is_refused() -> None:
    head, worker = join(careless(None), identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done


def test_a_worker_of_two_networks_serves_the_heads_of_both_each_with_its_own_leaf() -> None:
    server = identity.server_context([WORKER, identity.mint(OTHER, Role.WORKER, "box-1")])
    for authority in (OURS, OTHER):
        leaf = identity.mint(authority, Role.HEAD, "desk")
        head, worker = join(identity.client_context(leaf), server, authority.tag)
        assert head.done and worker.done
        assert identity.check_peer(head.tls).authority is authority
        assert identity.check_peer(worker.tls).authority is authority


def test_a_head_of_one_network_that_names_the_other_is_refused() -> None:
    server = identity.server_context([WORKER, identity.mint(OTHER, Role.WORKER, "box-1")])
    for own, named in ((OURS, OTHER), (OTHER, OURS)):
        leaf = identity.mint(own, Role.HEAD, "desk")
        head, worker = join(careless(leaf), server, named.tag)
        assert not head.done and not worker.done
        assert join(careless(leaf), server, own.tag)[0].done, "and it is only the name that was wrong"


def test_the_wrong_key_usage_is_refused_both_ways() -> None:
    as_head = forge(OURS, Role.HEAD, [SERVER])
    head, worker = join(careless(as_head), identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done
    as_worker = forge(OURS, Role.WORKER, [CLIENT])
    head, _ = join(identity.client_context(HEAD), careless_server(as_worker), OURS.tag)
    assert not head.done


def test_a_certificate_played_back_to_its_owner_is_refused() -> None:
    head, worker = join(careless(WORKER), identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done
    with pytest.raises(PeerRefused):
        identity.check_certificate(der(WORKER), OURS, Role.HEAD)


def test_a_leaf_cannot_sign_a_leaf(tmp_path: Path) -> None:
    for signer in (HEAD, forge(OURS, Role.HEAD, ca=True, key_usage=False)):
        rogue = forge(signer, Role.HEAD)
        chain = tmp_path / "chain.pem"
        chain.write_bytes(
            rogue.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + rogue.certificate.public_bytes(Encoding.PEM)
            + signer.certificate.public_bytes(Encoding.PEM)
        )
        context = careless(None)
        context.load_cert_chain(chain)
        head, worker = join(context, identity.server_context([WORKER]), OURS.tag)
        assert not head.done and not worker.done
        with pytest.raises(PeerRefused):
            identity.check_certificate(der(rogue), OURS, Role.HEAD)


def test_the_ca_is_no_leaf() -> None:
    as_it_is = Leaf(OURS, Role.HEAD, OURS.certificate, OURS.key)
    head, worker = join(careless(as_it_is), identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done
    # Dressed as a leaf it passes OpenSSL: this is what check_peer is for.
    dressed = forge(OURS, Role.HEAD, key=OURS.key)
    head, worker = join(careless(dressed), identity.server_context([WORKER]), OURS.tag)
    assert worker.done
    with pytest.raises(PeerRefused):
        identity.check_peer(worker.tls)


FORGED = {
    "no extended key usage": forge(OURS, Role.HEAD, []),
    "two of them": forge(OURS, Role.HEAD, [CLIENT, SERVER]),
    "any usage": forge(OURS, Role.HEAD, [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "CA:TRUE": forge(OURS, Role.HEAD, ca=True),
    "no key usage": forge(OURS, Role.HEAD, key_usage=False),
    "no name": forge(OURS, Role.HEAD, uris=()),
    "two names": forge(OURS, Role.HEAD, uris=("head:a", "head:b")),
    "a worker's name": forge(OURS, Role.HEAD, uris=("worker:a",)),
    "a name for a terminal": forge(OURS, Role.HEAD, uris=("head:\x1b[31m",)),
    "an endless name": forge(OURS, Role.HEAD, uris=("head:" + "a" * 2000,)),
    "a name with a line feed behind it": forge(OURS, Role.HEAD, uris=("head:a\n",)),
    "another CA": forge(OTHER, Role.HEAD),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_certificate_that_a_member_should_never_show_is_refused(name: str) -> None:
    with pytest.raises(PeerRefused):
        identity.check_certificate(der(FORGED[name]), OURS, Role.HEAD)


def test_a_certificate_is_refused_whatever_is_wrong_with_its_bytes() -> None:
    good = der(HEAD)
    assert identity.check_certificate(good, OURS, Role.HEAD).id == "desk"
    # No signature covers the count of unused bits in front of its own 64 bytes.
    uncovered = len(good) - 65
    for at in set(range(len(good))) - {uncovered}:
        for broken in (good[:at], good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :]):
            with pytest.raises(PeerRefused):
                identity.check_certificate(broken, OURS, Role.HEAD)


def test_a_key_of_another_kind_is_refused() -> None:
    builder = x509.CertificateBuilder(
        issuer_name=OURS.certificate.subject,
        subject_name=HEAD.certificate.subject,
        public_key=ec.generate_private_key(ec.SECP256R1()).public_key(),
        serial_number=5,
        not_valid_before=datetime(2020, 1, 1),
        not_valid_after=datetime(2090, 1, 1),
        extensions=list(HEAD.certificate.extensions),
    )
    made = builder.sign(OURS.key, algorithm=None).public_bytes(Encoding.DER)
    with pytest.raises(PeerRefused, match="key"):
        identity.check_certificate(made, OURS, Role.HEAD)


@pytest.mark.parametrize("start", [datetime(1970, 1, 1), datetime.now() + timedelta(days=300), datetime(2099, 1, 1)])
def test_no_date_matters(start: datetime) -> None:
    dates = {"start": start.replace(tzinfo=UTC), "end": start.replace(tzinfo=UTC) + timedelta(days=1)}
    head, worker = talk(forge(OURS, Role.HEAD, **dates), forge(OURS, Role.WORKER, **dates))  # type: ignore[arg-type]
    assert head.done and worker.done
    assert identity.check_peer(head.tls).id == identity.check_peer(worker.tls).id == "forged"

    # The dates are such that a context which does look at them refuses.
    looking = identity.client_context(HEAD)
    looking.verify_flags &= ~identity._NO_CHECK_TIME
    head, _ = join(looking, identity.server_context([forge(OURS, Role.WORKER, **dates)]), OURS.tag)  # type: ignore[arg-type]
    assert not head.done


def test_tls_1_2_is_refused_both_ways() -> None:
    old = careless(HEAD)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    head, worker = join(old, identity.server_context([WORKER]), OURS.tag)
    assert not head.done and not worker.done
    server = careless_server(WORKER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    head, worker = join(identity.client_context(HEAD), server, OURS.tag)
    assert not head.done and not worker.done


@pytest.mark.parametrize(
    "record", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x0e" + (24).to_bytes(8, "little") + bytes(24)]
)
def test_what_is_not_tls_is_refused(record: bytes) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(record)
    server = End(identity.server_context([WORKER]).wrap_bio(incoming, ssl.MemoryBIO(), server_side=True))
    server.step()
    assert server.error is not None
    assert not identity.token_refused(server.error)


def test_no_session_is_ever_resumed() -> None:
    client, server = identity.client_context(HEAD), identity.server_context([WORKER])
    first, _ = join(client, server, OURS.tag)
    assert first.done
    assert first.tls.session is None or not first.tls.session.has_ticket
    again, worker = join(client, server, OURS.tag, first.tls.session)
    assert again.done and not again.tls.session_reused and not worker.tls.session_reused

    # With the two locks off the same contexts do resume, so there is something to lock.
    server.num_tickets = 2
    server.options &= ~ssl.OP_NO_TICKET
    first, _ = join(client, server, OURS.tag)
    assert first.tls.session is not None and first.tls.session.has_ticket
    assert join(client, server, OURS.tag, first.tls.session)[0].tls.session_reused
    # A ticket that is genuine finds the locks closed.
    ticket = first.tls.session
    server.num_tickets = 0
    server.options |= ssl.OP_NO_TICKET
    again, worker = join(client, server, OURS.tag, ticket)
    assert again.done and not again.tls.session_reused
    assert identity.check_peer(worker.tls).id == "desk"


def test_an_id_that_cannot_be_announced_is_a_usage_error() -> None:
    for bad in ("", "a" * 49, "a b", "a.b", "é", "a\n"):
        with pytest.raises(WorkerError) as caught:
            identity.mint(OURS, Role.WORKER, bad)
        assert caught.value.code == ExitCode.USAGE
    identity.mint(OURS, Role.WORKER, "A-z_9" + "a" * 43)


def test_every_leaf_is_fresh() -> None:
    leaves = [identity.mint(OURS, Role.HEAD, "a") for _ in range(20)]
    assert len({leaf.certificate.serial_number for leaf in leaves}) == 20
    assert len({leaf.key.private_bytes_raw() for leaf in leaves}) == 20


def test_no_repr_shows_a_key() -> None:
    for thing in (OURS, HEAD, identity.check_peer(talk(HEAD, WORKER)[0].tls)):
        assert "PrivateKey" not in repr(thing)


@pytest.fixture
def open_files() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("open_files")
def test_making_contexts_leaves_no_file_open() -> None:
    for _ in range(20):
        identity.server_context([WORKER])
        identity.client_context(HEAD)


def test_the_vectors_of_the_protocol_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
    vector = next(word.strip("`") for word in page.split() if word.startswith("`worker1_aaaq"))
    authority = identity.authority(network(parse(vector)))
    made = authority.certificate.public_bytes(Encoding.DER)
    assert f"`{authority.tag}`" in page
    assert f"`{authority.key.public_key().public_bytes_raw().hex()}`" in page
    assert f"`{sha256(made).hexdigest()}`" in page
    assert base64.b64encode(made).decode() in "".join(page.split())
