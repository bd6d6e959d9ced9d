"""Goal: an announcement is believed when a member of the network made it, as it made it, and never else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from app.p2p.announcement import Announcement, read, write
from app.p2p.token import generate, network, parse

OURS, OTHER = network(parse(generate())), network(parse(generate()))
SAID = Announcement("box-1-0a1b2c3d", "Box-1", 25052, OURS.tag, 1, "7.0.0")


def wire(text: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in text.items()}


def test_what_a_member_says_is_read_as_it_was_said() -> None:
    assert read([OTHER, OURS], SAID.instance, SAID.port, wire(write(SAID, OURS))) == SAID


def test_every_spelling_of_an_instance_is_one() -> None:
    assert read([OURS], SAID.instance.upper(), SAID.port, wire(write(SAID, OURS))) == SAID


def test_nobody_else_believes_it() -> None:
    assert read([OTHER], SAID.instance, SAID.port, wire(write(SAID, OURS))) is None
    assert read([], SAID.instance, SAID.port, wire(write(SAID, OURS))) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(SAID, instance="box-1-0a1b2c3e"),
        replace(SAID, worker_id="Box-2"),
        replace(SAID, worker_id="box-1"),
        replace(SAID, port=25053),
        replace(SAID, protocol=2),
        replace(SAID, rpc="7.0.1"),
    ],
    ids=lambda other: str(other),
)
def test_a_proof_is_for_one_announcement_alone(other: Announcement) -> None:
    forged = write(other, OURS) | {"mac": write(SAID, OURS)["mac"]}
    assert read([OURS], other.instance, other.port, wire(forged)) is None
    assert read([OURS], other.instance, other.port, wire(write(other, OURS))) == other


@pytest.mark.parametrize("proof", ["", "0" * 32, "\xff" * 32, None])
def test_without_a_proof_it_is_nothing(proof: str | None) -> None:
    text = wire(write(SAID, OURS))
    text[b"mac"] = None if proof is None else proof.encode("latin-1")
    assert read([OURS], SAID.instance, SAID.port, text) is None
    del text[b"mac"]
    assert read([OURS], SAID.instance, SAID.port, text) is None


def test_a_proof_of_another_network_does_not_count() -> None:
    """A member of one network, which knows the tag of the other."""
    forged = write(SAID, OTHER) | {"tag": OURS.tag}
    assert read([OURS, OTHER], SAID.instance, SAID.port, wire(forged)) is None


@pytest.mark.parametrize(
    "odd",
    [
        replace(SAID, instance="a.b"),
        replace(SAID, instance="x" * 64),
        replace(SAID, instance="\x1b[31mred"),
        replace(SAID, worker_id=""),
        replace(SAID, worker_id="a b"),
        replace(SAID, worker_id="x" * 49),
        replace(SAID, port=0),
        replace(SAID, port=65536),
        replace(SAID, protocol=-1),
        replace(SAID, rpc="\x1b[2J"),
        replace(SAID, rpc="7.0.0" * 40),
    ],
    ids=lambda odd: ascii(odd),
)
def test_what_a_member_says_is_checked_for_form_too(odd: Announcement) -> None:
    assert read([OURS], odd.instance, odd.port, wire(write(odd, OURS))) is None


def test_the_vector_of_the_protocol_page() -> None:
    secret = "worker1_aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyptwsvu"
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
    known = network(parse(secret))
    said = replace(SAID, worker_id="box-1", tag=known.tag)
    [proof] = re.findall(r"mac of .* \| `([0-9a-f]{32})`", page)
    assert write(said, known)["mac"] == proof
    assert f"| announcement key | `{known.announcement_key.hex()}` |" in page
