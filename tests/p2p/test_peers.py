"""Goal: a peer that a user names is understood as it was meant, or refused with an example."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.p2p.peers import Peer, parse_peer, read_peers_file


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.5", "10.0.0.5", 25052),
        ("10.0.0.5:7", "10.0.0.5", 7),
        (" box.lan:65535 ", "box.lan", 65535),
        ("fe80::1%eth0", "fe80::1%eth0", 25052),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9),
        ("[::1]", "::1", 25052),
    ],
)
def test_peers(text: str, host: str, port: int) -> None:
    peer = parse_peer(text)
    assert peer == Peer(host, port)
    assert parse_peer(str(peer)) == peer


@pytest.mark.parametrize(
    "text",
    [
        *("", ":5", "host:", "host:http", "host:0", "host:65536", "host:5:6", "[::1", "[::1]5", "[::1]:", "[]:5"),
        *("a b", "h:\u0661", "http://box:7", "user@box", "[box]:7", "fd00::1::2", "x" * 254),
    ],
)
def test_what_is_no_peer(text: str) -> None:
    with pytest.raises(WorkerError, match="is no peer") as caught:
        parse_peer(text)
    assert caught.value.code == ExitCode.USAGE
    assert "such as" in caught.value.hint


def test_another_default_port() -> None:
    assert parse_peer("10.0.0.5", 80) == Peer("10.0.0.5", 80)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "peers"
    file.write_text("# the cellar\n10.0.0.5\n\nbox:7  # upstairs\n")
    assert read_peers_file(file) == [Peer("10.0.0.5", 25052), Peer("box", 7)]
    file.write_text("10.0.0.5\nno peer\n")
    with pytest.raises(WorkerError, match="line 2"):
        read_peers_file(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkerError, match="not a text file"):
        read_peers_file(file)
    file.write_text("x" * (1 << 21))
    with pytest.raises(WorkerError, match="too long"):
        read_peers_file(file)
    with pytest.raises(WorkerError, match="cannot read the peers file"):
        read_peers_file(tmp_path / "none")
