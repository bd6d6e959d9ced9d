"""Goal: what the user says and reads of the cache: whole models in, wrong files named, sizes as people write them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app import embedded, p2p_stub, payload
from app.cli import main
from app.embedded import Payload
from app.payload import Assets
from tests.cache.conftest import LARGE
from tests.live.model import split

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tree: Path, make_payload: Callable[[], Payload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:  # fmt: skip
    """`worker cache ...` without p2p: its status, stdout and stderr. The frozen file: tests/live/test_cache.py."""

    def unpacked(*_: object) -> Assets:
        return Assets(tree.parent, tree, os.open(tree, os.O_RDONLY | os.O_DIRECTORY))

    monkeypatch.setattr(embedded, "payload", make_payload)
    monkeypatch.setattr(payload, "ensure", unpacked)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))

    def words(*arguments: str | Path) -> tuple[int, str, str]:
        status = main(["worker", "cache", *map(str, arguments)], p2p_stub)
        said = capsys.readouterr()
        return status, said.out, said.err

    return words


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def test_add_list_verify_and_prune(run: Run, large_model: Path, directory: Path) -> None:
    assert run("list") == (0, f"{directory}: 0 files, 0.0 MiB\n", "")
    status, said, _ = run("add", large_model)
    assert (status, f"{directory}: 3 tensors, 36 MiB: 3 added, 0 were there" in said) == (0, True)
    assert "0 added, 3 were there" in run("add", large_model)[1]
    listed = json.loads(run("list", "--json")[1])
    assert (listed["directory"], listed["bytes"], len(listed["files"])) == (str(directory), 36 << 20, 3)
    assert "12 MiB" in run("list")[1]
    assert run("verify")[:2] == (0, f"{directory}: 3 files, each as its name says\n")
    os.truncate(files(directory)[1], 100)
    wrong = files(directory)[1].name
    status, said, _ = run("verify")
    assert (status, f"removed {wrong}" in said, "2 files, each as its name says" in said) == (1, True, True)
    assert run("verify")[0] == 0
    (directory / ".add-0").write_text("of a killed one")
    assert run("prune", "--max-size", "13M")[1].count("removed") == 1
    assert len(files(directory)) == 1
    assert run("prune", "--max-size", "0")[0] == 0
    assert list(directory.iterdir()) == []


def test_json_names_every_tensor(run: Run, large_model: Path, directory: Path) -> None:
    lines = [json.loads(line) for line in run("add", "--json", large_model)[1].splitlines()]
    assert {(line["tensor"].split(".")[2], line["state"], line["bytes"]) for line in lines} == {
        (part, "added", 12 << 20) for part in ("ffn_gate", "ffn_up", "ffn_down")
    }
    assert {line["hash"] for line in lines} == {path.name for path in files(directory)}


def test_what_makes_it_too_large_goes(run: Run, large_model: Path, directory: Path) -> None:
    old = directory / ("a" * 16)
    old.write_bytes(bytes(1 << 20))
    os.utime(old, (1, 1))
    assert run("add", "--max-size", "36M", large_model)[0] == 0
    assert not old.exists()
    assert len(files(directory)) == 3


def test_a_model_that_is_too_large_is_refused_whole(run: Run, large_model: Path, directory: Path) -> None:
    status, said, error = run("add", "--max-size", "35M", large_model)
    assert (status, said) == (1, "")
    assert error.startswith("error: the cache may hold 35 MiB, and these are 36 MiB\nhint: raise --max-size")
    assert list(directory.iterdir()) == []


def test_the_first_part_stands_for_all(run: Run, directory: Path, tmp_path: Path) -> None:
    parts = split(tmp_path / "model.gguf", LARGE, tensors=8)
    assert len(parts) > 1
    assert "3 tensors, 36 MiB: 3 added" in run("add", parts[0])[1]
    assert "3 tensors, 36 MiB: 0 added" in run("add", *parts)[1]
    parts[-1].unlink()
    status, _, error = run("add", parts[0])
    assert (status, f"there is no file {parts[-1]}" in error, f"{len(parts)} parts" in error) == (1, True, True)


def test_every_model_is_read_before_anything_is_written(
    run: Run, large_model: Path, directory: Path, tmp_path: Path
) -> None:
    cut = shutil.copy(large_model, tmp_path / "cut.gguf")
    os.truncate(cut, large_model.stat().st_size - 1)
    status, _, error = run("add", large_model, cut)
    assert (status, "cut.gguf is cut short\nhint: copy it again" in error) == (1, True)
    assert list(directory.iterdir()) == []


def test_prune_removes_what_is_none_of_the_caches(run: Run, directory: Path) -> None:
    (directory / "big").write_text("not counted")
    (directory / ".add-1/deep").mkdir(parents=True)
    assert run("prune")[0] == 0
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("command", ["add", "list", "verify", "prune"])
@pytest.mark.parametrize("harm", ["may not be read", "others may write"])
def test_a_directory_that_cannot_be_used_is_one_error(
    run: Run, large_model: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, command: str, harm: str
) -> None:
    if harm == "others may write":
        directory.chmod(0o777)
    else:  # not even by root
        scandir = os.scandir

        def refuse(place: str | Path) -> object:
            if place == directory:
                raise PermissionError(errno.EACCES, "Permission denied")
            return scandir(place)

        monkeypatch.setattr(os, "scandir", refuse)
    status, said, error = run(command, *([large_model] if command == "add" else []))
    assert (status, said) == (1, "")
    assert error.startswith("error: ")
    assert "hint: " in error
    assert "LLAMA_CACHE" in error


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["add"], "MODEL.gguf"),
        (["add", "--max-size", "many", "m.gguf"], "size"),
        (["prune", "--max-size", "-1"], "size"),
        (["list", "model.gguf"], "unrecognized"),
        ([], "unknown command: cache"),
    ],
)
def test_a_wrong_command_line(run: Run, words: list[str], complaint: str) -> None:
    status, _, error = run(*words)
    assert (status, complaint in error) == (2, True), error
