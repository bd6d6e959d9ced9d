"""Goal: a start knows what to serve, remembers it, leaves out what crashes, and says so once."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from app.backends import probe
from app.backends.start import Arranger, Start
from app.embedded import Payload
from app.errors import WorkerError
from tests.backends.conftest import Probed
from tests.conftest import MakePayload

SOFTWARE = [
    {"physical": 0, "name": "llvmpipe", "type": "cpu", "driver": "llvmpipe", "info": "", "api": "1.3.0"},
]


def arranger(
    payload: Payload, base: Path, *devices: str, env: dict[str, str] | None = None, **options: object
) -> Arranger:
    arguments = ["--device", ",".join(devices)] if devices else []
    environ = {**os.environ, **(env or {})}
    return Arranger(payload, arguments, devices, environ, assets_path=str(base), **options)  # type: ignore[arg-type]


def prepare(payload: Payload, base: Path, *devices: str, env: dict[str, str] | None = None, **options: object) -> Start:
    return arranger(payload, base, *devices, env=env, **options).prepare()


def test_where_all_is_well_the_server_starts_from_its_own_directory(probed: Probed, base: Path) -> None:
    start = prepare(probed(cuda="ok CUDA0=H100"), base)
    assert start.command.cwd.name == "util"
    assert start.command.argv == [str(start.command.cwd / "llama-cpp-rpc-server")]
    assert [device.name for device in start.plan.served] == ["CUDA0"]


def test_a_file_without_a_probe_starts_as_ever(make_payload: MakePayload, base: Path) -> None:
    start = prepare(make_payload(), base, "CUDA0")
    assert start.command.argv[1:] == ["--device", "CUDA0"]
    assert start.plan.served == ()
    with pytest.raises(WorkerError, match="a GPU is required, and none could be looked for"):
        prepare(make_payload(), base, require_gpu=True)


def test_a_second_start_remembers(probed: Probed, base: Path, probe_log: Path) -> None:
    payload = probed(cuda="crash")
    first = prepare(payload, base)
    runs = probe_log.read_text()
    second = prepare(payload, base)
    assert probe_log.read_text() == runs
    assert (second.plan, second.command) == (first.plan, first.command)


def test_what_hung_is_tried_again_at_the_next_start(
    probed: Probed, base: Path, probe_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "RUN_LIMIT", 1.0)
    payload = probed(cuda="hang")
    prepare(payload, base)
    runs = probe_log.read_text()
    prepare(payload, base)
    assert probe_log.read_text() == 2 * runs


def test_a_library_that_was_missing_may_have_been_put_beside(probed: Probed, base: Path, probe_log: Path) -> None:
    payload = probed(cuda="missing")
    prepare(payload, base)
    runs = probe_log.read_text()
    (base / "lib").mkdir(mode=0o700)
    (base / "lib/libcublas.so.13").touch()
    prepare(payload, base)
    assert probe_log.read_text() == 2 * runs


def test_after_a_start_in_vain_it_looks_anew(probed: Probed, base: Path, probe_log: Path) -> None:
    keeper = arranger(probed(), base)
    keeper.prepare()
    runs = probe_log.read_text()
    keeper.forget()
    keeper.prepare()
    assert probe_log.read_text() == 2 * runs


def test_a_gpu_that_failed_its_trial_is_tried_again_at_the_next_start(
    probed: Probed, base: Path, probe_log: Path
) -> None:
    payload = probed(cuda="ok CUDA0=H100/crash")
    assert prepare(payload, base).plan.devices == ("CPU",)
    runs = len(probe_log.read_text())
    prepare(payload, base)
    assert len(probe_log.read_text()) == 2 * runs


def test_what_crashes_is_left_out_and_said_so_once(
    probed: Probed, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = arranger(probed(cuda="crash"), base)
    start = keeper.prepare()
    assert sorted(path.name for path in start.command.cwd.iterdir()) == ["libggml-cpu-x64.so", "llama-cpp-rpc-server"]
    assert start.command.argv[0] == str(start.command.cwd / "llama-cpp-rpc-server")
    assert len(start.held) == 2
    keeper.prepare()
    assert (
        caplog.text.count("libggml-cuda.so is left out: it failed its trial, whose process was killed by SIGILL") == 1
    )


def test_an_own_backend_is_loaded_in_place_of_ours(
    probed: Probed, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = Path(os.path.realpath(tmp_path)) / "own"
    own.mkdir(mode=0o755)
    (own / "libggml-cuda.so").write_text("ok CUDA0=H100 CUDA1=H100")
    start = prepare(probed(cuda="crash"), base, backend_dir=str(own))
    assert (start.command.cwd / "libggml-cuda.so").readlink() == own / "libggml-cuda.so"
    assert [device.name for device in start.plan.served] == ["CUDA0", "CUDA1"]
    assert f"libggml-cuda.so: your own, from {own}" in caplog.text


def test_a_backend_path_that_crashes_is_taken_from_the_server(probed: Probed, base: Path, tmp_path: Path) -> None:
    for content, kept in (("ok CUDA0=H100", True), ("crash", False)):
        path = tmp_path / content[:2] / "mine.so"
        path.parent.mkdir()
        path.write_text(content)
        start = prepare(probed(), base, env={"GGML_BACKEND_PATH": str(path)})
        assert ("GGML_BACKEND_PATH" in start.command.env) is kept
        assert start.command.cwd.name == "util"


def test_a_software_device_that_is_asked_for_appears(probed: Probed, base: Path) -> None:
    env = {"FAKE_VULKAN": json.dumps(SOFTWARE)}
    start = prepare(probed(vulkan="ok"), base, "Vulkan0", env=env)
    assert start.command.env["GGML_VK_VISIBLE_DEVICES"] == "0"
    assert start.command.argv[1:] == ["--device", "Vulkan0"]
    assert "GGML_VK_VISIBLE_DEVICES" not in prepare(probed(vulkan="ok"), base, env=env).command.env


def test_a_required_gpu_is_looked_for_anew(probed: Probed, base: Path, probe_log: Path) -> None:
    prepare(probed(), base)
    runs = probe_log.read_text()
    with pytest.raises(WorkerError, match="no GPU can be served"):
        prepare(probed(), base, require_gpu=True)
    assert probe_log.read_text() == 2 * runs


def test_an_unused_gpu_is_a_loud_warning(
    probed: Probed, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app.backends import machine

    seen = machine.Machine((machine.Gpu("NVIDIA", "0000:01:00.0", "nvidia"),), ("/dev/nvidia0",))
    monkeypatch.setattr(machine, "look", lambda: seen)
    prepare(probed(cuda="missing"), base)
    assert "A GPU IS NOT USED. There is the NVIDIA GPU at 0000:01:00.0, but only the CPU is served." in caplog.text
    assert "CUDA: NVIDIA's driver is missing" in caplog.text
    caplog.clear()
    prepare(probed(cuda="missing"), base, "CPU")
    assert "NOT USED" not in caplog.text
