"""Goal: the file uses the devices that work, says why others are not used, and serves the CPU whatever breaks.

The GPU is Mesa's software driver: the same loader, backend and shaders as with a real one, only slow.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.broken import broken
from tests.live.support import (
    Running,
    free_port,
    generate,
    greedy,
    hello,
    serving,
    wait_for_hello,
)

LIMIT = 240.0
"""Seconds: a guard against hanging. The software driver compiles shaders for half a minute on two cores."""
EQUAL_TOKENS = 16
"""Of 48. Vulkan's shaders add in another order than the CPU's kernels, and keep some factors in 16 bits; where two
tokens are nearly as likely that may turn the choice, and all that follows it is another text. So not all need be
equal (here they were), but wrong numbers part the two at the first or second one: by chance each agrees once in 259."""
NO_DRIVER = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}


@pytest.fixture(scope="session")
def software_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Vulkan finds Mesa's software driver and nothing else."""
    given: dict[str, str] = json.loads(os.environ.get("WORKER_TEST_VULKAN_ENV") or "{}")
    if not given:
        pytest.skip("no software GPU: WORKER_TEST_VULKAN_ENV is empty, see what build.py said")
    # Compiled once for all tests, and in a hurry.
    shaders = tmp_path_factory.mktemp("shaders")
    return given | {"MESA_SHADER_CACHE_DIR": str(shaders), "GALLIVM_PERF": "nopt"}


@pytest.fixture(autouse=True)
def _has_vulkan(binary: Path) -> None:
    told = subprocess.run([binary, "version", "--json"], capture_output=True, text=True, timeout=LIMIT, check=True)
    if "VULKAN" not in json.loads(told.stdout)["backends"]:
        pytest.skip("this file was built without Vulkan")


def run(binary: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary, *words], env=env, capture_output=True, text=True, timeout=LIMIT, check=False)


def devices(binary: Path, *words: str, env: dict[str, str]) -> dict[str, Any]:
    result = run(binary, "devices", "--json", *words, env=env)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


@contextmanager
def logged(binary: Path, *words: str, env: dict[str, str], log: Path) -> Iterator[Running]:
    """`worker llama-cpp-rpc` with `words`, answering; what it says goes to `log`."""
    port = free_port()
    with log.open("w") as file:
        command: list[str | Path] = [binary, "llama-cpp-rpc", *words, "--", "-p", str(port)]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
        try:
            wait_for_hello(port, process)
            yield Running(process, port)
        finally:
            process.terminate()
            process.wait(LIMIT)


def mapped(pid: int) -> set[str]:
    """The names of the backend libraries that the process has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if "libggml-" in line}


def test_without_a_driver_only_the_cpu_is_offered_and_the_reason_told(binary: Path, env: dict[str, str]) -> None:
    told = devices(binary, env=env | NO_DRIVER)
    assert [(device["name"], device["served"]) for device in told["devices"]] == [("CPU", True)]
    assert told["devices"][0]["driver"].startswith("cpu-")
    assert told["devices"][0]["total"] > 0
    assert [absent["backend"] for absent in told["absent"]] == ["Vulkan"]
    assert told["absent"][0]["why"]
    assert told["left_out"] == []


def test_a_software_driver_is_shown_and_not_taken(
    binary: Path, env: dict[str, str], software_gpu: dict[str, str]
) -> None:
    _, device = devices(binary, env=env | software_gpu)["devices"]
    assert (device["backend"], device["name"], device["served"]) == ("Vulkan", "Vulkan0", False)
    assert device["description"].startswith("llvmpipe")
    assert "llvmpipe" in device["driver"]
    assert "slower than the CPU" in device["why_not"]
    (_, taken) = devices(binary, env=env | software_gpu | {"GGML_VK_VISIBLE_DEVICES": "0"})["devices"]
    assert (taken["name"], taken["served"], taken["total"] > 0) == ("Vulkan0", True, True)


def test_the_table_on_a_terminal_and_off(binary: Path, small_binary: Path, env: dict[str, str]) -> None:
    """The small build carries nothing that draws."""
    for program in (binary, small_binary):
        plain = run(program, "devices", env=env | NO_DRIVER)
        assert plain.returncode == 0, plain.stderr
        assert plain.stdout.split()[:3] == ["BACKEND", "NAME", "DESCRIPTION"]
        assert "Vulkan offers nothing: " in plain.stdout
        ours, theirs = pty.openpty()
        drawn = subprocess.run([program, "devices"], env=env | NO_DRIVER, stdout=theirs, timeout=LIMIT, check=False)
        os.close(theirs)
        assert drawn.returncode == 0
        assert b"BACKEND" in os.read(ours, 4096)
        os.close(ours)


def test_a_required_gpu_that_is_not_there_is_an_error_with_reasons(binary: Path, env: dict[str, str]) -> None:
    token = run(binary, "token", env=env).stdout.strip()
    for words in (
        ["llama-cpp-rpc", "--require-gpu", "--"],
        ["p2p-llama-cpp-rpc", "--require-gpu", "--no-mdns", "--listen", "127.0.0.1:0"],
    ):
        result = run(binary, *words, env=env | NO_DRIVER | {"TOKEN": token})
        assert result.returncode == 1, result.stderr
        assert "error: no GPU can be served, and one is required\n  Vulkan: " in result.stderr
        assert "hint: " in result.stderr


def test_a_device_that_is_not_there_is_told_from_those_that_are(binary: Path, env: dict[str, str]) -> None:
    for words in (["--device", "CUDA7", "--"], ["--", "-d", "CUDA7"]):
        result = run(binary, "llama-cpp-rpc", *words, env=env | NO_DRIVER)
        assert result.returncode == 2
        assert "error: this machine offers no device 'CUDA7'" in result.stderr
        assert "hint: it offers CPU (" in result.stderr


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = Path(os.path.realpath(tmp_path)) / "own"
    directory.mkdir(mode=0o755)
    return directory


def test_a_backend_that_crashes_is_left_out_and_the_cpu_serves(
    binary: Path, clients: Path, tree: Path, tiny_model: Path, env: dict[str, str], own: Path, tmp_path: Path
) -> None:
    broken(tree / "backend-assets/util/libggml-rpc.so", own / "libggml-cuda.so")
    words = ["--backend-dir", str(own)]
    told = devices(binary, *words, env=env | NO_DRIVER)
    assert told["left_out"][0]["library"] == "libggml-cuda.so"
    assert "SIGILL" in told["left_out"][0]["why"]
    log = tmp_path / "log"
    with logged(binary, *words, env=env | NO_DRIVER, log=log) as running:
        assert generate(clients, tiny_model, f"127.0.0.1:{running.port}")
        assert "libggml-cuda.so" not in mapped(running.server)
    assert "libggml-cuda.so is left out: it failed its trial, whose process was killed by SIGILL" in log.read_text()
    assert "serving CPU: " in log.read_text()


def test_after_a_cpu_variant_that_crashes_comes_the_next(
    binary: Path, tree: Path, env: dict[str, str], own: Path, tmp_path: Path
) -> None:
    (cpu,) = devices(binary, env=env | NO_DRIVER)["devices"]
    best = f"libggml-{cpu['driver']}.so"
    broken(tree / "backend-assets/util" / best, own / best)
    (cpu,) = devices(binary, "--backend-dir", str(own), env=env | NO_DRIVER)["devices"]
    following = f"libggml-{cpu['driver']}.so"
    assert following != best
    log = tmp_path / "log"
    with logged(binary, "--backend-dir", str(own), env=env | NO_DRIVER, log=log) as running:
        assert hello(running.port) is not None
        loaded = mapped(running.server)
    assert following in loaded
    assert best not in loaded


def test_an_own_backend_is_loaded(binary: Path, tree: Path, env: dict[str, str], own: Path, tmp_path: Path) -> None:
    """A copy of the best CPU variant stands in for a vendor's build of it."""
    (cpu,) = devices(binary, env=env | NO_DRIVER)["devices"]
    vendors = own / f"libggml-{cpu['driver']}.so"
    vendors.write_bytes((tree / "backend-assets/util" / vendors.name).read_bytes())
    log = tmp_path / "log"
    with logged(binary, "--backend-dir", str(own), env=env | NO_DRIVER, log=log) as running:
        maps = Path(f"/proc/{running.server}/maps").read_text()
        (links,) = (Path(env["BACKEND_ASSETS_PATH"])).glob("*.links-*")
        pruned = run(binary, "assets", "prune", env=env)
        assert str(links) not in pruned.stdout, "a server runs there"
    assert f"{vendors.name}: your own, from {own}" in log.read_text()
    assert str(vendors) in maps
    assert str(links) in run(binary, "assets", "prune", env=env).stdout
    own.chmod(0o777)
    refused = run(binary, "llama-cpp-rpc", "--backend-dir", str(own), "--", env=env)
    assert refused.returncode == 4
    assert f"error: {own} can be written by other users" in refused.stderr


def test_a_later_start_reads_what_the_first_one_found(binary: Path, env: dict[str, str], tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with logged(binary, env=env | NO_DRIVER, log=tmp_path / "log"):
            (verdict,) = Path(env["BACKEND_ASSETS_PATH"]).glob("*.verdict-*")
            seen.append(verdict.stat().st_ino)
    assert seen[0] == seen[1], "it was probed again"
    devices(binary, env=env | NO_DRIVER)
    assert verdict.stat().st_ino != seen[0], "`devices` did not look anew"


def _agree(one: str, other: str) -> bool:
    return bool(json.loads(one)[:EQUAL_TOKENS] == json.loads(other)[:EQUAL_TOKENS])


def test_tokens_of_the_software_gpu_are_the_cpus(
    binary: Path, clients: Path, tiny_model: Path, env: dict[str, str], software_gpu: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env | NO_DRIVER):
        expected = generate(clients, tiny_model, f"127.0.0.1:{port}")
    log = tmp_path / "log"
    with logged(binary, "--device", "Vulkan0", "--require-gpu", env=env | software_gpu, log=log) as running:
        assert _agree(generate(clients, tiny_model, f"127.0.0.1:{running.port}"), expected)
        environment = Path(f"/proc/{running.server}/environ").read_bytes().split(b"\0")
        assert b"GGML_VK_VISIBLE_DEVICES=0" in environment
    assert "serving Vulkan0: llvmpipe" in log.read_text()


def test_tokens_of_the_software_gpu_through_the_relay_are_the_cpus(
    binary: Path, clients: Path, tiny_model: Path, env: dict[str, str], software_gpu: dict[str, str], tmp_path: Path
) -> None:
    token = run(binary, "token", env=env).stdout.strip()
    results = []
    for visible in ({}, {"GGML_VK_VISIBLE_DEVICES": "0"}):
        port, log = str(free_port()), tmp_path / "log"
        given = env | software_gpu | visible | {"TOKEN": token}
        address = f"127.0.0.1:{port}"
        with log.open("w") as file:
            words = ["p2p-llama-cpp-rpc", "--listen", address, "--no-mdns", "--name", "gpu"]
            worker = subprocess.Popen([binary, *words], env=given, stdout=file, stderr=file, start_new_session=True)
            try:
                head: list[str | Path] = [
                    binary,
                    "connect",
                    "--no-mdns",
                    "--peer",
                    address,
                    "--timeout",
                    "60",
                    "--base-port",
                ]
                head += [str(free_port()), "--", *greedy(clients, tiny_model, "{rpc}")]
                result = subprocess.run(head, env=given, capture_output=True, text=True, timeout=LIMIT, check=False)
            finally:
                worker.terminate()
                worker.wait(LIMIT)
        assert result.returncode == 0, result.stderr[-3000:]
        results.append(result.stdout)
        assert ("Vulkan0: llvmpipe" in log.read_text()) is bool(visible)
    assert _agree(*results)
