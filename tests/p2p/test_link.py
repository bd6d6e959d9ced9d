"""Goal: a head knows who a worker is, follows it, notices its end and says why it cannot be used."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app import __version__
from app.p2p.channel import ChannelError
from app.p2p.frames import Message, Purpose, Refused, Status
from app.p2p.identity import Role, mint
from app.p2p.link import Address, Head, Link, LinkEnd, LinkError, Problem, greet, new_head
from tests.p2p.fake_worker import BUSY, HANG, READY, FakeWorker, eventually, new_token

_, OURS = new_token()
_, OTHER = new_token()
HEAD = new_head(OURS, "desk", Purpose.CONNECT)


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "box-1", "Box") as made:
        yield made


def dial(address: Address, head: Head = HEAD) -> Link:
    return Link(greet(address, head), head)


class Followed:
    """A link that is listened to, and what came of it."""

    def __init__(self, link: Link, **limits: float) -> None:
        self.statuses: list[Status] = []
        self.ended: Future[LinkEnd] = Future()
        link.follow(self.statuses.append, self.ended.set_result, **limits)

    def end(self) -> LinkEnd:
        return self.ended.result(HANG)


def test_both_sides_learn_who_is_there(worker: FakeWorker) -> None:
    link = dial(worker.address)
    assert (link.hello.id, link.hello.name, link.status, link.peer.id) == ("box-1", "Box", READY, "box-1")
    [told] = worker.heads
    assert (told.name, told.session, told.version, told.purpose) == ("desk", HEAD.session, __version__, Purpose.CONNECT)
    link.close()


def test_a_name_that_would_steer_a_terminal_is_cleaned() -> None:
    assert new_head(OURS, "de\x1b[31msk" + "k" * 100, Purpose.LIST).name == "de?[31msk" + "k" * 55


@pytest.mark.parametrize(("listen", "dialled"), [("127.0.0.1", "localhost"), ("::1", "::1")])
def test_a_name_and_ipv6_lead_there_and_the_numeric_address_is_kept(listen: str, dialled: str) -> None:
    with FakeWorker(OURS, host=listen) as worker:
        link = dial(Address(dialled, worker.port))
        assert link.address == worker.address
        link.close()


def test_what_the_worker_tells_arrives(worker: FakeWorker) -> None:
    link = dial(worker.address)
    followed = Followed(link)
    worker.tell(BUSY)
    eventually(lambda: followed.statuses == [BUSY])
    assert link.status == BUSY
    link.close()


def numbered(number: int) -> Status:
    """One of many statuses that differ."""
    return replace(BUSY, since=number)


def test_of_statuses_that_come_fast_the_newest_arrives(worker: FakeWorker) -> None:
    link = dial(worker.address)
    followed = Followed(link, status_pause=1.0)
    for number in range(50):
        worker.tell(numbered(number))
    eventually(lambda: followed.statuses[-1:] == [numbered(49)])
    assert link.status == numbered(49)
    assert len(followed.statuses) < 50
    link.close()


def test_a_status_that_is_held_back_comes_without_another_frame(worker: FakeWorker) -> None:
    worker.mute = True
    link = dial(worker.address)
    followed = Followed(link, status_pause=0.5)
    worker.tell(numbered(1))
    worker.tell(numbered(2))
    eventually(lambda: followed.statuses[-1:] == [numbered(2)])
    link.close()


def test_a_worker_that_sends_much_is_read_slowly(worker: FakeWorker) -> None:
    fast = Followed(dial(worker.address), frame_pause=0.0, status_pause=0.0)
    slow = Followed(dial(worker.address, new_head(OURS, "slow", Purpose.LIST)), frame_pause=HANG, status_pause=0.0)
    eventually(lambda: worker.controls == 2)
    for number in range(20):
        worker.tell(numbered(number))
    eventually(lambda: len(fast.statuses) == 20)
    assert len(slow.statuses) <= 1


def test_a_worker_that_reads_nothing_does_not_keep_us(worker: FakeWorker) -> None:
    link = dial(worker.address)
    followed = Followed(link)
    eventually(lambda: worker.controls)
    [talk] = worker._controls
    with talk.channel._reading:
        stuck = threading.Thread(target=fill, args=(link,), daemon=True)
        stuck.start()
        eventually(link._talk.channel._sending.locked)
        leaving = threading.Thread(target=link.close, args=("the head has ended",), daemon=True)
        leaving.start()
        leaving.join(HANG)
        assert not leaving.is_alive()
        assert followed.end() is LinkEnd.CLOSED


def fill(link: Link) -> None:
    """Write more to the worker than there is room for on the way."""
    with suppress(ChannelError):
        link._talk.channel.write(bytes(1 << 28))


def test_a_quiet_link_lives_by_its_pings(worker: FakeWorker) -> None:
    link = dial(worker.address)
    followed = Followed(link, ping_interval=0.1, silence_limit=0.6)
    with pytest.raises(TimeoutError):
        followed.ended.result(1.5)
    worker.mute = True
    assert followed.end() is LinkEnd.SILENT


@pytest.mark.parametrize(
    ("end", "told"), [(FakeWorker.stop, LinkEnd.BYE), (FakeWorker.kill, LinkEnd.CUT), (FakeWorker.close, LinkEnd.CUT)]
)
def test_a_stopped_worker_is_told_from_a_killed_one(
    worker: FakeWorker, end: Callable[[FakeWorker], None], told: LinkEnd
) -> None:
    followed = Followed(dial(worker.address))
    eventually(lambda: worker.controls)
    end(worker)
    assert followed.end() is told


def test_the_worker_is_told_that_we_leave(worker: FakeWorker) -> None:
    link = dial(worker.address)
    followed = Followed(link)
    link.close("the head has ended")
    assert followed.end() is LinkEnd.CLOSED
    eventually(lambda: worker.left == ["the head has ended"])


def test_what_is_no_message_ends_the_link(worker: FakeWorker) -> None:
    followed = Followed(dial(worker.address))
    eventually(lambda: worker.controls)
    worker.send_raw(b"\0\0\0\2{}")
    assert followed.end() is LinkEnd.WRONG


def problem(address: Address, head: Head = HEAD) -> tuple[Problem, str]:
    with pytest.raises(LinkError) as caught:
        dial(address, head)
    return caught.value.problem, str(caught.value)


def test_another_token_is_said_to_be_that(worker: FakeWorker) -> None:
    assert problem(worker.address, new_head(OTHER, "desk", Purpose.LIST)) == (Problem.REFUSED, "token refused")
    assert worker.heads == []


def test_a_worker_that_does_not_take_our_certificate_refuses_the_token(worker: FakeWorker, tmp_path: Path) -> None:
    """Its alert comes after our handshake: a TLS 1.3 client has finished before the server looks at its certificate."""
    leaf = mint(OURS, Role.WORKER, "box-1")
    pem = tmp_path / "leaf.pem"
    pem.write_bytes(
        leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + leaf.certificate.public_bytes(Encoding.PEM)
    )
    worker.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    worker.context.load_cert_chain(pem)
    worker.context.load_verify_locations(cadata=OTHER.certificate.public_bytes(Encoding.DER))
    worker.context.verify_mode = ssl.CERT_REQUIRED
    assert problem(worker.address)[0] is Problem.REFUSED


def test_nobody_there() -> None:
    assert problem(Address("127.0.0.1", 1)) == (Problem.UNREACHABLE, "cannot be reached: connection refused")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "10.0.0.1.2"])
def test_a_name_that_leads_nowhere(host: str) -> None:
    assert problem(Address(host, 25052))[0] is Problem.UNREACHABLE


@pytest.mark.parametrize(
    ("says", "expected"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", Problem.NOT_A_WORKER), (b"", Problem.UNREACHABLE)],
)
def test_another_service_is_no_worker(says: bytes, expected: Problem) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError), closing(listener.accept()[0]) as sock:
                sock.recv(4096)
                sock.sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        assert problem(Address("127.0.0.1", listener.getsockname()[1]))[0] is expected


def test_a_worker_that_calls_itself_otherwise_than_its_certificate() -> None:
    with FakeWorker(OURS, "box-1", hello=lambda hello: replace(hello, id="box-2")) as worker:
        assert problem(worker.address)[0] is Problem.NOT_A_WORKER


def test_a_worker_that_does_not_want_us_says_why() -> None:
    def refuse(_: Message) -> Message:
        return Refused("this worker speaks version 7 of the protocol")

    with FakeWorker(OURS, hello=refuse) as worker:
        assert problem(worker.address) == (
            Problem.DECLINED,
            "does not want us: this worker speaks version 7 of the protocol",
        )
