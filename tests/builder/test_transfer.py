"""Goal: what was compiled on one machine arrives whole on another, and an archive of something else is named."""

from __future__ import annotations

import platform
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from builder import transfer
from builder.native import Tree


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BUILD", tmp_path / "build")
    monkeypatch.setattr(transfer, "DIST", tmp_path / "dist")


def made(directory: Path, name: str) -> Path:
    file = directory / "backend-assets/util" / name
    file.parent.mkdir(parents=True)
    file.write_text(name)
    file.chmod(0o755)
    return directory


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    path = made(tmp_path / "worker", "llama-cpp-rpc-server")
    here = platform.machine()
    return Tree(path, here, "zig", "2.28", False, "0.5.0", "0c1e57098", "7.0.0", "glslc", ("x64",))


@pytest.mark.parametrize("with_head", [True, False])
def test_both_parts_arrive(tree: Tree, tmp_path: Path, with_head: bool) -> None:
    head = made(tmp_path / "head", "llama-server") if with_head else None
    archive = transfer.export(tree, head)
    for _ in range(2):
        arrived, arrived_head = transfer.imported(archive)
        assert (arrived.target, arrived.gpu_sdk) == (tree.target, "glslc")
        server = arrived.path / "backend-assets/util/llama-cpp-rpc-server"
        assert (server.read_text(), server.stat().st_mode & 0o777) == ("llama-cpp-rpc-server", 0o755)
        assert sorted(path.name for path in arrived.path.iterdir()) == ["backend-assets"]
        assert (arrived_head is not None) == with_head
        if arrived_head is not None:
            assert (arrived_head / "backend-assets/util/llama-server").read_text() == "llama-server"
            assert arrived_head.name != arrived.path.name


def test_an_archive_for_another_machine_is_refused(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    archive = transfer.export(replace(tree, target="riscv64"), None)
    with pytest.raises(SystemExit):
        transfer.imported(archive)
    assert "is for riscv64" in capsys.readouterr().err


def test_an_archive_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "other.tar.xz", "w:xz") as tar:
        tar.add(made(tmp_path / "other", "something"), "other")
    for archive, why in ((tmp_path / "other.tar.xz", "another version of build.py"), (tmp_path / "gone", "is missing")):
        with pytest.raises(SystemExit):
            transfer.imported(archive)
        assert why in capsys.readouterr().err
