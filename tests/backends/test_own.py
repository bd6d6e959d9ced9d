"""Goal: the user's own backends are found, and one that another user could have put there is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.backends import own
from app.errors import ExitCode, WorkerError
from tests.conftest import needs_root, nobody


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = Path(os.path.realpath(tmp_path)) / "own"
    directory.mkdir(mode=0o755)
    (directory / "libggml-cuda.so").write_text("x")
    return directory


def test_backends_are_found_and_other_libraries_left_alone(place: Path) -> None:
    for name in ("libggml-base.so", "libggml-rpc.so", "libcudart.so.13", "libggml-hip.so", "readme"):
        (place / name).write_text("x")
    assert own.find(str(place)) == {name: place / name for name in ("libggml-cuda.so", "libggml-hip.so")}


def test_links_inside_are_followed(place: Path) -> None:
    (place / "libggml-cuda.so").rename(place / "libggml-cuda.so.0.9")
    (place / "libggml-cuda.so").symlink_to("libggml-cuda.so.0.9")
    (place.parent / "here").symlink_to(place)
    assert own.find(str(place.parent / "here")) == {"libggml-cuda.so": place / "libggml-cuda.so.0.9"}


@pytest.mark.parametrize(
    "spoil", ["open directory", "open between", "open file", "foreign", "link out", "directory", "missing", "empty"]
)
@needs_root
def test_what_others_could_have_put_there_is_refused(place: Path, spoil: str) -> None:
    library = place / "libggml-cuda.so"
    if spoil == "open directory":
        place.chmod(0o777)
    elif spoil == "open between":
        (place / "sub").mkdir()
        library.rename(place / "sub/x.so")
        library.symlink_to("sub/x.so")
        (place / "sub").chmod(0o777)
    elif spoil == "open file":
        library.chmod(0o666)
    elif spoil == "foreign":
        os.chown(library, nobody, -1)
    else:
        library.unlink()
        if spoil == "link out":
            (place.parent / "elsewhere.so").write_text("x")
            library.symlink_to("../elsewhere.so")
        elif spoil == "directory":
            library.mkdir()
        elif spoil == "missing":
            place.rmdir()
    with pytest.raises(WorkerError) as caught:
        own.find(str(place))
    assert caught.value.code == ExitCode.ASSETS
    assert str(place) in caught.value.message
    assert "--backend-assets-path" not in caught.value.hint
