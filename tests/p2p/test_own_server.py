"""Goal: the user's own server is started as the carried one is, and one that another user could change is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.p2p import own_server
from tests.conftest import needs_root, nobody


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a server, reached through a link as well."""
    directory = Path(os.path.realpath(tmp_path)) / "b1234"
    directory.mkdir(mode=0o755)
    for name in ("rpc-server", "libggml-base.so.0.9"):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    (directory / "libggml-base.so.0").symlink_to("libggml-base.so.0.9")
    (directory.parent / "llama").symlink_to(directory)
    return directory


def test_links_of_ours_are_followed_once_and_for_all(place: Path) -> None:
    assert own_server.find(str(place.parent / "llama/rpc-server")) == place / "rpc-server"
    (place / "current").symlink_to("rpc-server")
    assert own_server.find(str(place / "../b1234/current")) == place / "rpc-server"


def test_it_starts_in_its_directory_without_the_token_and_with_the_users_libraries(place: Path) -> None:
    environ = {"LOCALAI_TOKEN": "secret", "LD_LIBRARY_PATH": "/opt/theirs", "LLAMA_CACHE": "cache"}
    command = own_server.command(place / "rpc-server", ["-c", "--odd"], environ)
    assert command.argv == [str(place / "rpc-server"), "-c", "--odd"]
    assert command.cwd == place
    assert command.env == {"LD_LIBRARY_PATH": "/opt/theirs", "LLAMA_CACHE": str(Path("cache").absolute())}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("missing", "no such file"),
        ("a directory", "not a regular file"),
        ("a fifo", "not a regular file"),
        ("not executable", "not executable"),
        ("a circle", "too many levels|loop"),
    ],
)
def test_what_is_no_program_is_one_clear_error(place: Path, spoil: str, said: str) -> None:
    server = place / "rpc-server"
    if spoil == "not executable":
        server.chmod(0o644)
    else:
        server.unlink()
        if spoil == "a directory":
            server.mkdir()
        elif spoil == "a fifo":
            os.mkfifo(server)
        elif spoil == "a circle":
            server.symlink_to("rpc-server")
    with pytest.raises(WorkerError, match=said) as caught:
        own_server.find(str(server))
    assert str(server) in caught.value.message
    assert caught.value.code == ExitCode.USAGE
    assert caught.value.hint


@pytest.mark.parametrize(
    "spoil", ["its directory", "above", "itself", "a library", "foreign", "foreign link", "on the way of a link"]
)
@needs_root
def test_what_others_can_change_is_refused(place: Path, spoil: str) -> None:
    given = place / "rpc-server"
    if spoil == "its directory":
        place.chmod(0o777)
    elif spoil == "above":
        place.parent.chmod(0o775)
    elif spoil == "itself":
        given.chmod(0o775)
    elif spoil == "a library":
        (place / "libggml-base.so.0.9").chmod(0o666)
    elif spoil == "foreign":
        os.chown(given, nobody, -1)
    elif spoil == "foreign link":
        given = place.parent / "llama/rpc-server"
        os.chown(place.parent / "llama", nobody, -1, follow_symlinks=False)
    else:
        open_to_all = place.parent / "open"
        open_to_all.mkdir()
        (open_to_all / "between").symlink_to(place)
        (place.parent / "start").symlink_to("open/between")
        open_to_all.chmod(0o777)
        given = place.parent / "start/rpc-server"
    with pytest.raises(WorkerError) as caught:
        own_server.find(str(given))
    assert caught.value.code == ExitCode.USAGE
    assert str(place.parent) in caught.value.message
    assert "only you or root can write" in caught.value.hint


def test_a_broken_link_beside_it_is_nobodys_business(place: Path) -> None:
    (place / "libgone.so").symlink_to("nowhere")
    assert own_server.find(str(place / "rpc-server"))


def test_it_is_looked_at_again_before_every_start(place: Path) -> None:
    program = own_server.find(str(place / "rpc-server"))
    program.chmod(0o777)
    with pytest.raises(WorkerError, match="can be written by other users"):
        own_server.command(program, [], {})


def test_a_sticky_directory_will_not_do_for_what_ggml_loads_from(place: Path) -> None:
    place.chmod(0o1777)
    with pytest.raises(WorkerError, match="can be written by other users"):
        own_server.find(str(place / "rpc-server"))
