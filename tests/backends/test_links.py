"""Goal: a program finds exactly the libraries it shall load, and a directory that was tampered with is made anew."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from app.backends import links
from app.embedded import Payload
from app.payload import SERVER, Assets, ensure
from tests.conftest import MakePayload


@pytest.fixture
def payload(make_payload: MakePayload) -> Payload:
    return make_payload()


@pytest.fixture
def assets(payload: Payload, base: Path) -> Assets:
    return ensure(payload, str(base), {})


@pytest.fixture
def wanted(assets: Assets, tmp_path: Path) -> dict[str, Path]:
    own = tmp_path / "libggml-cuda.so"
    own.write_text("own")
    return {"libggml-cpu-x64.so": assets.server.parent / "libggml-cpu-x64.so", "libggml-cuda.so": own}


def test_it_holds_the_links_and_the_server(payload: Payload, assets: Assets, wanted: dict[str, Path]) -> None:
    made = links.ensure(assets, payload.manifest, SERVER, wanted)
    assert sorted(path.name for path in made.program.parent.iterdir()) == [*sorted(wanted), "llama-cpp-rpc-server"]
    assert (made.program.parent / "libggml-cuda.so").read_text() == "own"
    assert not made.program.is_symlink()
    assert made.program.read_bytes() == assets.server.read_bytes()
    assert os.access(made.program, os.X_OK)
    assert made.program.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_start_finds_it(payload: Payload, assets: Assets, wanted: dict[str, Path]) -> None:
    first = links.ensure(assets, payload.manifest, SERVER, wanted)
    assert links.ensure(assets, payload.manifest, SERVER, wanted).program.stat().st_ino == first.program.stat().st_ino
    fewer = {"libggml-cuda.so": wanted["libggml-cuda.so"]}
    assert links.ensure(assets, payload.manifest, SERVER, fewer).program != first.program


@pytest.mark.parametrize("spoil", ["added", "removed", "retargeted", "copied", "server", "mode", "linked"])
def test_a_directory_that_was_changed_is_made_anew(
    payload: Payload, assets: Assets, wanted: dict[str, Path], spoil: str, tmp_path: Path
) -> None:
    made = links.ensure(assets, payload.manifest, SERVER, wanted)
    os.close(made.fd)
    link = made.program.parent / "libggml-cuda.so"
    if spoil == "added":
        (made.program.parent / "libggml-vulkan.so").write_text("planted")
    elif spoil == "mode":
        made.program.parent.chmod(0o755)
    elif spoil == "server":
        made.program.write_bytes(b"planted")
    elif spoil == "linked":
        os.link(made.program, tmp_path / "another name")
    else:
        link.unlink()
        if spoil == "retargeted":
            link.symlink_to("/tmp/planted.so")
        elif spoil == "copied":
            link.write_text("planted")
    again = links.ensure(assets, payload.manifest, SERVER, wanted)
    assert sorted(path.name for path in again.program.parent.iterdir()) == [*sorted(wanted), "llama-cpp-rpc-server"]
    assert link.readlink() == wanted["libggml-cuda.so"]
    assert again.program.read_bytes() == assets.server.read_bytes()
    assert again.program.parent.stat().st_mode & 0o777 == 0o700
    assert not list(assets.base.glob("*.tmp-*"))


def test_it_is_locked_while_it_is_used(payload: Payload, assets: Assets, wanted: dict[str, Path]) -> None:
    made = links.ensure(assets, payload.manifest, SERVER, wanted)
    other = os.open(made.program.parent, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(made.fd)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
