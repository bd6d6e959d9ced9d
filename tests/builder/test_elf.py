"""Goal: the build reads of a library what the dynamic loader reads, and can put our own libraries first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from builder.elf import Elf, newest_glibc


@pytest.fixture
def server() -> Path:
    """The staged rpc-server."""
    tree = os.environ.get("WORKER_TEST_TREE")
    if not tree:
        pytest.skip("WORKER_TEST_TREE is not set: start the tests with python3 build.py test")
    return Path(tree) / "backend-assets/util/llama-cpp-rpc-server"


def test_the_staged_server(server: Path) -> None:
    elf = Elf(server)
    assert {"libggml.so.0", "libggml-base.so.0", "libc.so.6"} <= set(elf.needed)
    assert (elf.rpath, elf.runpath) == ("$ORIGIN", None)
    assert (2, 2) <= elf.glibc <= (2, 28)


def test_against_binutils(server: Path) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is missing")
    for file in sorted(server.parent.iterdir()):
        out = subprocess.run(["objdump", "-p", file], capture_output=True, text=True, check=True).stdout
        assert [line.split()[1] for line in out.splitlines() if "NEEDED" in line] == Elf(file).needed
        named = {word for word in out.split() if word.startswith("GLIBC_2")}
        assert max(tuple(map(int, name[6:].split("."))) for name in named) == Elf(file).glibc


def test_runpath_becomes_rpath(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "empty.c").write_text("int nothing;")
    library = tmp_path / "library.so"
    flags = ["-shared", "-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/here"]
    subprocess.run([compiler, *flags, "-o", library, tmp_path / "empty.c"], check=True)
    assert (Elf(library).rpath, Elf(library).runpath) == (None, "$ORIGIN/here")
    Elf(library).prefer_own_libraries()
    assert (Elf(library).rpath, Elf(library).runpath) == ("$ORIGIN/here", None)


def test_what_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(ValueError, match="not a 64-bit"):
        Elf(tmp_path / "text")
    assert newest_glibc([tmp_path / "text"]) == ()
