"""Goal: however the bytes arrive, the same messages come out, and a hostile member can neither crash nor fill us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.p2p import frames
from app.p2p.frames import (
    Busy,
    Bye,
    Control,
    Data,
    Decoder,
    Device,
    Hello,
    Message,
    Ok,
    OurError,
    PeerError,
    Ping,
    Pong,
    Purpose,
    Refused,
    State,
    Status,
    Welcome,
)
from app.p2p.records import clean

SESSION = "0123456789abcdef" * 2
DEVICE = Device("CUDA0", "NVIDIA GeForce RTX 4090", 25_393_692_672, 24_931_467_264)
STATUS = Status(State.BUSY, "desk", 42, "7.0.0", (DEVICE,))
HELLO = Hello(1, "box-1", "Küche", "0.1.0", "b7000", "0123abc", "on", STATUS)
MESSAGES: list[Message] = [
    Welcome(1), Control(1, SESSION, "desk", "0.1.0", Purpose.CONNECT), Data(1, SESSION), HELLO, STATUS,
    Ok(), Busy("desk", 42), Refused("no control connection"), Ping(), Pong(), Bye("stopping"),
]  # fmt: skip


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def decode(data: bytes) -> Message | None:
    decoder = Decoder()
    decoder.feed(data)
    return decoder.next(Message)


def changed(message: Message, **values: Any) -> bytes:
    """The frame of `message` with other values, as a peer that keeps to no bound could send it."""
    body = json.loads(frames.encode(message)[4:])
    return frame(json.dumps(body | values).encode())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(frames.encode(message)) == message


def test_every_kind_of_message_is_tried_here() -> None:
    assert {type(message) for message in MESSAGES} == set(Message.__subclasses__())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.binary(max_size=50), st.data())
def test_the_cuts_between_the_bytes_do_not_matter(sent: list[Message], tail: bytes, data: st.DataObject) -> None:
    stream = b"".join(map(frames.encode, sent)) + tail
    decoder = Decoder()
    received: list[Message] = []
    fed = 0
    while len(received) < len(sent):
        step = data.draw(st.integers(1, 400))
        decoder.feed(stream[fed : fed + step])
        fed += step
        while len(received) < len(sent) and (message := decoder.next(Message)) is not None:
            received.append(message)
    assert received == sent
    assert decoder.rest() + stream[fed:] == tail
    assert decoder.rest() == b""


def test_the_bytes_of_the_server_behind_the_last_frame_are_handed_over_untouched() -> None:
    decoder = Decoder()
    decoder.feed(frames.encode(Ok()) + b"\x00\x00\x00\x02{}\xff")
    assert decoder.next(Ok, Busy, Refused) == Ok()
    assert decoder.rest() == b"\x00\x00\x00\x02{}\xff"


def test_a_message_out_of_turn_is_the_peers_mistake() -> None:
    decoder = Decoder()
    decoder.feed(frames.encode(Ping()))
    with pytest.raises(PeerError, match="unexpected ping"):
        decoder.next(Control, Data)


def test_unknown_keys_are_ignored() -> None:
    assert decode(changed(Welcome(1), later={"a": [1]})) == Welcome(1)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"welcome"', b"{}", b'{"type":null}', b'{"type":["welcome"]}',
        b'{"type":"Welcome"}', b'{"type":"message"}', b'{"type":"device"}', b'{"type":"welcome"}',
        b'{"type":"welcome","protocol":NaN}', b'{"type":"welcome","protocol":-1}',
        b'{"type":"welcome","protocol":true}', b'{"type":"welcome","protocol":1e3}',
        b'{"type":"welcome","protocol":"1"}', b'{"type":"welcome","protocol":' + b"9" * 60000 + b"}",
        b"\xff\xfe", b"\xef\xbb\xbf{}", '{"type":"ping"}'.encode("utf-16"), b"[" * 60000, b'{"a":' * 12000,
    ],
)  # fmt: skip
def test_what_is_no_message_is_the_peers_mistake(body: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        decode(frame(body))
    assert len(str(caught.value)) < 200, "a log line must not repeat what was sent"


@pytest.mark.parametrize(
    "data",
    [
        changed(Data(1, SESSION), session="0" * 31),
        changed(Data(1, SESSION), session="F" * 32),
        changed(Control(1, SESSION, "a", "b", Purpose.LIST), purpose="steal"),
        changed(Control(1, SESSION, "a", "b", Purpose.LIST), name="a" * 65),
        changed(Control(1, SESSION, "a", "b", Purpose.LIST), name="\x1b]0;owned\x07"),
        changed(Busy("a", 1), holder="\u202egnp.exe"),
        changed(Bye("a"), reason="a\r\nb"),
        changed(Refused("a"), reason="a" * 129),
        changed(STATUS, devices=[json.loads(frames.encode(STATUS)[4:])["devices"][0]] * 65),
        changed(HELLO, status=None),
    ],
)
def test_a_value_out_of_bounds_is_the_peers_mistake(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode(data)


def test_the_same_value_from_ourselves_is_our_mistake() -> None:
    for message in (Data(1, "short"), Bye("a\nb"), Welcome(-1), Refused("a" * 129)):
        with pytest.raises(OurError):
            frames.encode(message)


@pytest.mark.parametrize("size", [frames.MAX_FRAME + 1, 2**31, 2**32 - 1, int.from_bytes(b"GET ", "big")])
def test_a_frame_that_is_too_long_is_refused_before_it_comes(size: int) -> None:
    with pytest.raises(PeerError, match="bytes"):
        decode(size.to_bytes(4, "big"))


def test_a_frame_of_the_largest_size_is_read() -> None:
    body = b'{"type":"ping","pad":"' + b" " * (frames.MAX_FRAME - 24) + b'"}'
    assert len(body) == frames.MAX_FRAME
    assert decode(frame(body)) == Ping()


def test_the_largest_message_that_the_bounds_allow_fits_into_a_frame() -> None:
    wide, number = "\U0001f600", 2**53 - 1
    device = Device(wide * frames.MAX_NAME, wide * frames.MAX_TEXT, number, number)
    name, text = wide * frames.MAX_NAME, wide * frames.MAX_TEXT
    status = Status(State.CHECKING, name, number, text, (device,) * frames.MAX_DEVICES)
    hello = Hello(number, name, name, text, text, text, text, status)
    encoded = frames.encode(hello)
    assert len(encoded) - 4 <= frames.MAX_FRAME
    assert decode(encoded) == hello


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_bytes_are_messages_or_the_peers_mistake(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while decoder.next(Message) is not None:
                pass
    except PeerError:
        return
    assert len(decoder.rest()) < 4 + frames.MAX_FRAME


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_frame_is_a_message_or_the_peers_mistake(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(frames.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(4, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(encoded))
    except PeerError:
        return
    assert read is not None
    assert decode(frames.encode(read)) == read


def test_a_name_of_ours_that_nothing_may_show_is_cleaned_and_then_accepted() -> None:
    holder = clean("desk\x1b[31m\n\u202e" + "x" * 100, frames.MAX_NAME)
    assert decode(frames.encode(Busy(holder, 1))) == Busy(holder, 1)
    assert holder.startswith("desk?[31m??xxx")


def test_the_examples_of_the_protocol_page_are_what_is_sent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
    examples = [line for line in page.splitlines() if line.startswith('{"type":')]
    read = [decode(frame(example.encode())) for example in examples]
    assert {type(message) for message in read} == set(Message.__subclasses__())
    for example, message in zip(examples, read, strict=True):
        assert message is not None
        assert frames.encode(message)[4:].decode() == example
    assert f"`{frames.encode(Welcome(1)).hex(' ')}`" in page
