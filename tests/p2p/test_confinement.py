"""Goal: a server is left its own places and drivers and no way into the user's, whatever the environment names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.launch import ServerCommand
from app.p2p import confinement
from app.p2p.confinement import confine
from app.p2p.landlock import Access


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for place in ("home/.ssh", "home/server", "home/drivers", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    return tmp_path / "home"


def rules(home: Path, *arguments: str, **env: str) -> dict[str, Access]:
    """Path -> what is left to a server in `home`."""
    server = home / "server"
    confined = confine(ServerCommand([str(server / "server"), *arguments], {"HOME": str(home), **env}, server))
    found: dict[str, Access] = {}
    for path, access in confined.rules:
        found[path] = found.get(path, Access(0)) | access
    return found


def test_its_own_directory_is_read_and_nothing_else_of_the_home(home: Path) -> None:
    found = rules(home)
    assert found[str(home / "server")] == Access.READ
    below = {path for path in found if Path(path).is_relative_to(home)}
    assert below <= {str(home / "server"), str(home / "server/server")} | {
        str(home / place) for place in (".local/share/vulkan", ".config/vulkan", ".cache/localai/drivers")
    } | {path for path in below if ".cache/localai/drivers/" in path}  # fmt: skip


def test_neither_the_system_nor_home_is_given_away_whole(home: Path) -> None:
    for named in ("/", str(home), str(home.parent), f"{home}/server/../.", "/proc/self/root"):
        found = rules(home, LD_LIBRARY_PATH=f"{named}:{home}/drivers", GGML_BACKEND_PATH=f"{home}/libggml-x.so")
        assert str(home / "drivers") in found
        assert not [path for path in found if home.is_relative_to(os.path.realpath(path))]
    assert not [
        path for path in rules(home) if path in {"/", "/etc", "/dev", "/proc", "/sys", "/root", "/home", "/var"}
    ]


def test_other_processes_and_disks_are_not_among_the_places(home: Path) -> None:
    found = rules(home)
    assert "/proc/cpuinfo" in found
    assert not [path for path in found if path.startswith("/proc/") and (path[6:].isdigit() or path == "/proc/self")]
    assert not [path for path in found if path.startswith(("/dev/nvme", "/dev/sd", "/dev/vd", "/dev/shm", "/dev/mem"))]


def test_links_to_backends_lead_somewhere(home: Path) -> None:
    (home.parent / "elsewhere/libggml-x.so").touch()
    (home / "server/libggml-x.so").symlink_to(home.parent / "elsewhere/libggml-x.so")
    found = rules(home)
    assert str(home.parent / "elsewhere/libggml-x.so") in found
    assert str(home.parent / "elsewhere") not in found


def test_a_vulkan_driver_is_found_by_its_description(home: Path) -> None:
    (home / "drivers/gpu.json").write_text(json.dumps({"ICD": {"library_path": str(home.parent / "elsewhere/gpu.so")}}))
    (home / "drivers/plain.json").write_text(json.dumps({"ICD": {"library_path": "gpu.so"}}))
    (home / "drivers/broken.json").write_text("[]")
    names = ":".join(str(home / "drivers" / name) for name in ("plain.json", "broken.json", "absent.json"))
    assert str(home.parent / "elsewhere") not in rules(home, VK_DRIVER_FILES=names)
    found = rules(home, VK_DRIVER_FILES=f"{names}:{home}/drivers/gpu.json")
    assert {str(home / "drivers/gpu.json"), str(home.parent / "elsewhere")} <= set(found)


@pytest.mark.parametrize("flag", ["-c", "--cache"])
def test_the_cache_is_made_and_may_be_written(home: Path, flag: str) -> None:
    for env, place in (
        ({}, home / ".cache/llama.cpp/rpc"),
        ({"XDG_CACHE_HOME": f"{home}/x"}, home / "x/llama.cpp/rpc"),
        ({"LLAMA_CACHE": f"{home}/y"}, home / "y/rpc"),
    ):
        assert str(place) not in rules(home, **env)
        assert rules(home, flag, **env)[str(place)] == Access.KEEP
        assert place.is_dir()


def test_a_cache_that_cannot_be_made_is_the_servers_to_complain_of(home: Path) -> None:
    (home / ".cache").write_text("a file")
    assert rules(home, "-c")


def test_drivers_keep_compiled_code_where_no_other_program_reads_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server that was taken over leaves there must not run in the user's other programs."""
    monkeypatch.setattr(confinement, "_GPUS", ("/dev/nul*",))
    command = ServerCommand(["/server"], {"HOME": str(home), "CUDA_CACHE_PATH": f"{home}/own"}, home / "server")
    confined = confine(command)
    assert confined.env["CUDA_CACHE_PATH"] == f"{home}/own"
    assert confined.env["MESA_SHADER_CACHE_DIR"] == f"{home}/.cache/localai/drivers/mesa"
    assert (f"{home}/.cache/localai/drivers/mesa", Access.KEEP) in confined.rules
    assert (home / ".cache/localai/drivers/mesa").is_dir()
    assert "MESA_SHADER_CACHE_DIR" not in command.env


def test_without_a_gpu_nothing_is_made_for_drivers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_GPUS", ())
    rules(home)
    assert not (home / ".cache").exists()


@pytest.mark.parametrize(("nodes", "called"), [(["nvidia0"], True), (["nvidia0", "nvidia-uvm"], False), ([], False)])
def test_the_node_that_cuda_opens_is_made_before(tmp_path: Path, nodes: list[str], called: bool) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "dev").mkdir()
    for node in nodes:
        (tmp_path / "dev" / node).touch()
    helper = tmp_path / "bin/nvidia-modprobe"
    helper.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    helper.chmod(0o755)
    confinement.make_device_nodes({"PATH": f"{tmp_path}/bin"}, tmp_path / "dev")
    assert (tmp_path / "called").exists() is called
    confinement.make_device_nodes({"PATH": "/nonexistent"}, tmp_path / "dev")  # nothing to call: no error
