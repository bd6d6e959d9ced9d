"""Goal: a directory that holds code is reached only through directories that nobody else can change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from app.directories import UnsafeDirectory, check_owner, make_private, open_private, opened, remove
from tests.conftest import needs_root, nobody


def test_what_is_made_is_ours_alone_and_what_is_there_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private(tmp_path / "a/b/c")
    make_private(tmp_path / "a/b/c")
    modes = [(tmp_path / place).stat().st_mode & 0o777 for place in (".", "a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o700, 0o700, 0o700]


def test_missing_directories_are_made_for_us_alone(base: Path) -> None:
    with opened(open_private(base / "a/b", create=True)) as fd:
        assert os.fstat(fd).st_ino == (base / "a/b").stat().st_ino
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, base / "a", base / "a/b")] == [0o700] * 3


def test_a_missing_directory_is_not_made_unasked(base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_private(base, create=False)
    assert not base.exists()


def test_below_tmp_is_fine() -> None:
    """/tmp is writable by all, but sticky and root's: nobody can replace what is ours in it."""
    check_owner(Path("/tmp").stat(), Path("/tmp"))


@needs_root
def test_a_sticky_directory_of_another_user_is_not(base: Path) -> None:
    base.mkdir()
    base.chmod(0o1777)
    os.chown(base, nobody, -1)
    with pytest.raises(UnsafeDirectory, match="another user"):
        open_private(base / "below", create=True)


def test_no_descriptor_is_lost_on_the_way(base: Path) -> None:
    base.mkdir()
    (base / "link").symlink_to("/tmp")
    before = os.listdir("/proc/self/fd")
    for path in (base / "link/x", base / "none"):
        with pytest.raises((UnsafeDirectory, FileNotFoundError)):
            open_private(path, create=False)
    assert os.listdir("/proc/self/fd") == before


def test_remove_gets_to_the_bottom_of_a_tree(base: Path) -> None:
    """Deeper than descriptors, calls and paths go; some of it nobody may enter."""
    base.mkdir()
    (base / "gone").mkdir()
    fd = os.open(base / "gone", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.fchmod(fd, 0)
        os.close(fd)
        fd = below
    os.close(fd)
    with opened(os.open(base, os.O_RDONLY)) as fd:
        assert remove(fd, "gone")
    assert os.listdir(base) == []


def test_remove_follows_no_link(base: Path) -> None:
    (base / "keep").mkdir(parents=True)
    (base / "keep/file").write_text("precious")
    (base / "gone/sub").mkdir(parents=True)
    (base / "gone/sub/link").symlink_to(base / "keep")
    (base / "gone/file").symlink_to(base / "keep/file")
    with opened(os.open(base, os.O_RDONLY)) as fd:
        assert remove(fd, "gone")
        assert not remove(fd, "gone")
    assert not (base / "gone").exists()
    assert (base / "keep/file").read_text() == "precious"
