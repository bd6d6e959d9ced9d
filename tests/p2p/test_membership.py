"""Goal: the token is found where the user put it, its source is logged, and the token itself never."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.fields import fill
from app.options import ConnectOptions
from app.p2p.identity import authority
from app.p2p.membership import join
from app.p2p.token import generate, network, parse

ONE, TWO = generate(), generate()


def tags(environ: dict[str, str] | None = None, **given: str) -> list[str]:
    environ = environ or {}
    return [a.tag for a in join(fill(ConnectOptions(**given), environ), environ)]  # type: ignore[arg-type]


def tag(token: str, network_id: str = "") -> str:
    return authority(network(parse(token), network_id)).tag


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "token").touch(mode=0o600)
    return tmp_path / "token"


@pytest.fixture(autouse=True)
def never_logged(caplog: pytest.LogCaptureFixture) -> object:
    caplog.set_level(logging.DEBUG)
    yield
    assert ONE not in caplog.text
    assert TWO not in caplog.text


@pytest.mark.parametrize("name", ["LOCALAI_TOKEN", "LOCALAI_P2P_TOKEN", "TOKEN"])
def test_from_a_variable(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert tags({name: ONE}) == [tag(ONE)]
    assert f"token from the variable {name}, fingerprint {parse(ONE).fingerprint}" in caplog.text


def test_from_a_flag_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert tags({"TOKEN": TWO}, token=ONE) == [tag(ONE)]
    assert "seen by everybody" in caplog.text


def test_from_a_file_of_two(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(f"{ONE}\n{TWO}\n")
    assert tags({"TOKEN": "whatever"}, token_file=str(file)) == [tag(ONE), tag(TWO)]
    assert "can be read by other users" not in caplog.text
    file.chmod(0o644)
    tags(token_file=str(file))
    assert f"chmod 600 {file}" in caplog.text


def test_a_file_that_others_can_write_is_not_believed(file: Path) -> None:
    file.write_text(ONE)
    file.chmod(0o666)
    with pytest.raises(WorkerError, match="can be written by other users"):
        tags(token_file=str(file))


def test_the_network_id_makes_another_network() -> None:
    assert tags({"TOKEN": ONE}, network_id="lab") == [tag(ONE, "lab")] != [tag(ONE)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the token file"),
        (b"", "holds no token"),
        (b"\xff\xfe", "no token has"),
        (b"hunter2", "weak"),
    ],
)
def test_a_file_that_is_no_token_file(file: Path, content: bytes | None, message: str) -> None:
    file.write_bytes(content) if content is not None else file.unlink()
    with pytest.raises(WorkerError, match=message) as caught:
        tags(token_file=str(file))
    assert caught.value.code == ExitCode.USAGE
    assert caught.value.hint


def test_no_token_at_all() -> None:
    with pytest.raises(WorkerError, match="there is no token") as caught:
        tags()
    assert "worker token" in caught.value.hint
    assert "LOCALAI_TOKEN" in caught.value.hint


def test_both_flags() -> None:
    with pytest.raises(WorkerError, match="both --token and --token-file"):
        tags(token=ONE, token_file="x")
