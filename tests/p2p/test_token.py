"""Goal: a good token is taken as it is pasted, a bad one is named for what it is, and none is ever shown."""

from __future__ import annotations

import base64
import hmac
import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ExitCode, WorkerError
from app.p2p.token import Kind, generate, network, parse, parse_file

# The test vectors of docs/PROTOCOL.md.
VECTOR = "worker1_" + "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyptwsvu"
VECTOR_TAG = "537fcb28543003b336987958510c2029"
VECTOR_SEED = "68b7de2cdd1d874f1962153b96b11dca1b9a870a62a1df3ac7cf900bbec707aa"


def refusal(text: str) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        parse(text)
    assert caught.value.code == ExitCode.USAGE
    assert caught.value.hint
    return caught.value


def localai(key_chars: int = 43, alphabet: str = string.ascii_letters + string.digits) -> str:
    """A token as LocalAI makes it."""
    rng = random.Random(7)

    def word() -> str:
        return "".join(rng.choice(alphabet) for _ in range(key_chars))

    lines = ["otp:"]
    for section, interval in (("dht", 360), ("crypto", 9000)):
        lines += [f"  {section}:", f"    interval: {interval}", f"    key: {word()}", f"    length: {key_chars}"]
    lines += [f"room: {word()}", f"rendezvous: {word()}", f"mdns: {word()}", "max_message_size: 20971520", ""]
    return base64.b64encode("\n".join(lines).encode()).decode()


def test_generated_tokens_are_accepted_differ_and_can_be_double_clicked() -> None:
    texts = [generate() for _ in range(50)]
    assert len(set(texts)) == 50
    for text in texts:
        assert set(text) <= set(string.ascii_letters + string.digits + "_")
        assert parse(text).kind is Kind.OURS
        assert len(parse(text).secret) == 32


def test_white_space_around_a_token_and_line_breaks_in_it_do_not_matter() -> None:
    text = generate()
    assert parse(f"\n  {text[:30]}\r\n{text[30:]} \n") == parse(text)


def test_every_slip_of_one_character_is_told_as_a_mistyped_token() -> None:
    text = generate()
    for at in range(len(text)):
        for typed in ("b" if text[at] != "b" else "c", text[at].upper(), "-", "1" if text[at] != "1" else "2", ""):
            if typed == text[at]:
                continue
            error = refusal(text[:at] + typed + text[at + 1 :])
            assert "mistyped" in error.message or "version" in error.message or (typed in "-" and at < 7)


def test_swapped_and_missing_characters_are_told_as_a_mistyped_token() -> None:
    swapped = VECTOR[:20] + VECTOR[21] + VECTOR[20] + VECTOR[22:]
    assert swapped != VECTOR
    assert "checksum" in refusal(swapped).message
    assert "50 characters in place of 64" in refusal(VECTOR[:50]).message
    assert "mistyped" in refusal(VECTOR + "a").message
    assert "mistyped" in refusal(VECTOR.upper()).message
    assert "mistyped" in refusal(VECTOR.replace("worker", "woker")).message


def test_each_unusable_token_has_an_error_of_its_own() -> None:
    broken = {
        "empty": " \n ",
        "too long": "a" * 5000,
        "characters": VECTOR[:-1] + "\x00",
        "weak": "correct horse battery staple",
        "mistyped": VECTOR[:-1] + "a",
        "version 2": VECTOR.replace("worker1_", "worker2_"),
        "LocalAI token is damaged": localai()[:160],
        "LocalAI token is weak": localai(key_chars=16),
    }
    messages = {name: refusal(text).message for name, text in broken.items()}
    for name, message in messages.items():
        assert name in message
    assert len(set(messages.values())) == len(broken)


@pytest.mark.parametrize(
    "text", ["a", "password", "0" * 64, "not implemented", "worker", "workers4ever", "ключ", "ÿþ", "\udcff"]
)
def test_what_nobody_generated_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    "text", [VECTOR[:-1] + "a", VECTOR[:40], "hunter2", localai()[:160], "correct\x00horse", "é" * 20]
)
def test_no_error_repeats_the_token(text: str) -> None:
    error = refusal(text)
    shown = error.message + error.hint + str(error) + repr(error)
    assert not any(text[at : at + 6] in shown for at in range(len(text) - 5))


def test_a_localai_token_is_its_keys_however_it_is_pasted() -> None:
    text = localai()
    parsed = parse(text)
    assert parsed.kind is Kind.LOCALAI
    yaml = base64.b64decode(text)
    keys = [line.split()[1] for line in yaml.splitlines() if b" key: " in line]
    assert parsed.secret == b"\n".join(keys)
    wrapped = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    assert parse(wrapped) == parse(text.rstrip("=")) == parsed
    assert parse(base64.b64encode(yaml.replace(b"\n", b"\r\n")).decode()) == parsed
    assert parse(base64.b64encode(yaml + b"trusted_peer_ids: []\n").decode()) == parsed
    assert parse(localai(32, string.ascii_uppercase + "234567")).kind is Kind.LOCALAI


def test_a_localai_token_with_poor_keys_is_refused() -> None:
    assert "weak" in refusal(localai(alphabet="ab")).message
    assert "weak" in refusal(localai(key_chars=31)).message
    only_one_key = base64.b64encode(b"otp:\n  dht:\n    key: " + b"k3yK" * 10 + b"\n    length: 40\n").decode()
    assert "damaged" in refusal(only_one_key).message
    assert "damaged" in refusal("b3RwOgogIGRoYWdlX3NpemU6IDIwOTcxNTIwCg==").message
    # Cut within the second key: what is left of it must not pass for another key.
    yaml = base64.b64decode(localai())
    for cut in range(yaml.index(b"length"), yaml.rindex(b"length: ") + 8):
        assert "damaged" in refusal(base64.b64encode(yaml[:cut]).decode()).message
    # Keys without `otp:` above them are some other YAML.
    other = base64.b64encode(base64.b64decode(localai()).removeprefix(b"otp:\n")).decode()
    assert "weak" in refusal(other).message


def test_neither_token_nor_network_shows_its_secrets() -> None:
    parsed = parse(VECTOR)
    lab = network(parsed, "lab")
    for shown in (repr(parsed), str(parsed), repr(lab), str(lab)):
        assert repr(parsed.secret) not in shown
        assert parsed.secret.hex() not in shown
        for secret in (lab.ca_seed, lab.announcement_key):
            assert repr(secret) not in shown
            assert secret.hex() not in shown
    assert lab.tag in repr(lab)


def test_the_fingerprint_tells_tokens_apart_and_is_no_part_of_them() -> None:
    prints = {parse(generate()).fingerprint for _ in range(50)}
    assert len(prints) == 50
    assert all(len(print_) == 8 for print_ in prints)
    assert parse(VECTOR).fingerprint == parse(VECTOR).fingerprint


def test_a_network_is_the_token_and_the_id_together() -> None:
    one, two = parse(generate()), parse(generate())
    networks = [network(t, name) for t in (one, two) for name in ("", "a", "b", "a\0", "\0a", "é", "e\u0301")]
    assert len({one.tag for one in networks}) == len(networks)
    assert len({one.ca_seed for one in networks}) == len(networks)
    assert len({one.announcement_key for one in networks}) == len(networks)
    assert network(one, "a") == network(one, "a")


@pytest.mark.parametrize("name", ["x" * 257, "é" * 129, "\udcff"])
def test_an_unusable_network_id_is_a_usage_error(name: str) -> None:
    with pytest.raises(WorkerError) as caught:
        network(parse(VECTOR), name)
    assert caught.value.code == ExitCode.USAGE


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 for up to 32 bytes, written from the RFC."""
    prk = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]


def test_the_vectors_of_the_protocol_page() -> None:
    parsed = parse(VECTOR)
    assert parsed.secret == bytes(range(32))
    assert parsed.fingerprint == "afad8a73" == hkdf(parsed.secret, b"worker 1 fingerprint\0", 4).hex()
    plain = network(parsed)
    assert plain.tag == VECTOR_TAG == hkdf(parsed.secret, b"worker 1 tag\0", 16).hex()
    assert plain.ca_seed.hex() == VECTOR_SEED == hkdf(parsed.secret, b"worker 1 ca\0", 32).hex()
    assert plain.announcement_key == hkdf(parsed.secret, b"worker 1 announcement\0", 32)
    assert network(parsed, "lab").tag == "47f3989a2e397b6dc09f09fe6b9d86b3"
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
    for value in (VECTOR, VECTOR_TAG, VECTOR_SEED, "afad8a73", "47f3989a2e397b6dc09f09fe6b9d86b3"):
        assert f"`{value}`" in page


def test_a_token_file_holds_one_or_two_tokens_and_comments() -> None:
    old, new = generate(), generate()
    text = f"\ufeff# new since Monday\r\n{new}\n\n   # old\n  {old}  \n"
    assert parse_file(text) == (parse(new), parse(old))
    assert parse_file(new) == (parse(new),)
    assert parse_file(f"{localai()}\n{new}\n") == (parse(localai()), parse(new))
    assert parse_file(f"{new}\n{new}\n") == (parse(new),), "one network, served once"


def test_a_bad_token_file_says_which_line() -> None:
    good = generate()
    cases = {
        "line 3": f"# first\n{good}\n{good[:-1]}\n",
        "more than two": "\n".join(generate() for _ in range(3)),
        "holds no token": "\n# nothing\n\n",
        "too long": "#" * 70000,
    }
    for said, text in cases.items():
        with pytest.raises(WorkerError, match=said) as caught:
            parse_file(text)
        assert caught.value.code == ExitCode.USAGE
        assert good[:20] not in caught.value.message


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
)
def test_any_text_is_a_usage_error_and_nothing_else(text: str) -> None:
    for read in (parse, parse_file):
        with pytest.raises(WorkerError) as caught:
            read(text)
        assert caught.value.code == ExitCode.USAGE


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_yaml_behind_the_localai_start_is_a_usage_error(rest: bytes) -> None:
    with pytest.raises(WorkerError, match="LocalAI"):
        parse(base64.b64encode(b"otp:\n  dht:\n    key: " + rest).decode())
