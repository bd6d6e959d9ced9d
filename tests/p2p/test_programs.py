"""Goal: a program for the head lies beside the backends that are good here, and loads none from where the user is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest

from app.embedded import Payload
from app.errors import WorkerError
from app.p2p import programs
from app.p2p.programs import Program
from tests.backends.conftest import Probed
from tests.conftest import MakePayload

FILE = "backend-assets/util/llama-server"
SLOW = [
    {"physical": 0, "name": "V3D", "type": "integrated", "driver": "V3DV Mesa", "info": "", "api": "1.3.0"},
]


@pytest.fixture
def head(make_payload: MakePayload) -> Payload:
    """Its program tells what it sees."""
    return make_payload({FILE: b'#!/bin/sh\necho "$TOKEN $GGML_BACKEND_PATH"; pwd\n'})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, an empty one."""
    place = Path(os.path.realpath(tmp_path)) / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def arrange(worker: Payload, head: Payload, base: Path, **env: str) -> Program:
    return programs.arrange(worker, head, "llama-server", {**os.environ, **env}, str(base))


def beside(program: Program) -> list[str]:
    return sorted(path.name for path in program.path.parent.iterdir())


def test_it_runs_where_the_user_is_and_knows_no_token(probed: Probed, head: Payload, base: Path, here: Path) -> None:
    program = arrange(probed(), head, base, TOKEN="secret", GGML_BACKEND_PATH="mine.so")
    assert program.path.is_absolute()
    told = subprocess.run([program.path], env=program.env, capture_output=True, text=True, check=True).stdout
    assert told == f" {here}/mine.so\n{here}\n"
    assert beside(program) == ["libggml-cpu-x64.so", "llama-server"]


def test_the_parts_lie_side_by_side(probed: Probed, head: Payload, base: Path) -> None:
    worker = probed()
    program = arrange(worker, head, base)
    assert (base / worker.manifest.digest / "backend-assets/util/llama-cpp-rpc-server").exists()
    assert (base / head.manifest.digest / FILE).exists()
    assert program.path.parent.name.startswith(head.manifest.digest)
    assert arrange(worker, head, base).path == program.path


def test_its_files_are_held(probed: Probed, head: Payload, base: Path) -> None:
    program = arrange(probed(), head, base)
    held = {Path(f"/proc/self/fd/{fd}").readlink() for fd in program.held}
    assert program.path.parent in held
    assert base / head.manifest.digest in held
    assert len(held) == 3


def test_a_backend_that_crashes_is_left_out(
    probed: Probed, head: Payload, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert beside(arrange(probed(cuda="crash"), head, base)) == ["libggml-cpu-x64.so", "llama-server"]
    assert "libggml-cuda.so is left out" in caplog.text


def test_a_gpu_that_is_slower_than_the_cpu_is_not_shown(probed: Probed, head: Payload, base: Path) -> None:
    worker = probed(vulkan="ok Vulkan0=V3D")
    listed = json.dumps(SLOW)
    assert "libggml-vulkan.so" not in beside(arrange(worker, head, base, FAKE_VULKAN=listed))
    wished = arrange(worker, head, base, FAKE_VULKAN=listed, GGML_VK_VISIBLE_DEVICES="0")
    assert "libggml-vulkan.so" in beside(wished)
    assert "libggml-cuda.so" in beside(arrange(probed(cuda="ok CUDA0=H100"), head, base))


def test_a_directory_with_backends_is_refused(probed: Probed, head: Payload, base: Path, here: Path) -> None:
    (here / "libggml.so").touch()
    arrange(probed(), head, base)
    (here / "libggml-cpu-haswell.so").touch()
    with pytest.raises(WorkerError, match=r"holds libggml-cpu-haswell\.so") as refused:
        arrange(probed(), head, base)
    assert refused.value.hint == "start from another directory"


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770], ids=oct)
def test_a_working_directory_where_others_may_plant_a_backend_is_refused(here: Path, mode: int) -> None:
    here.chmod(mode)
    with pytest.raises(WorkerError, match="can be written by other users"):
        programs.refuse_foreign_backends()
    here.chmod(0o755)
    programs.refuse_foreign_backends()
