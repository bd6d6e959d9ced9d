"""Goal: what stands behind `--` reaches rpc-server exactly, however odd and long, or is one clear error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.live.support import free_port

ODD = {
    "spaces": " a  b ",
    "quotes": 'it\'s "so" `called`',
    "no ASCII": "Gerät ☃ 東京",
    "a line feed": "a\nb",
    "shell signs": "$HOME;*|&<>\\",
    "100 kB": "x" * 100_000,
}


@pytest.mark.parametrize("how", ["after --", "in the environment"])
def test_odd_arguments(binary: Path, env: dict[str, str], record: Record, how: str) -> None:
    """Row 50: a device that is not there is repeated as it was given; tests/test_launch.py has the server's argv."""
    for name, value in ODD.items():
        words = ["--", "-p", str(free_port()), "-d", value]
        variables = {}
        if how == "in the environment":
            quoted = value.replace("'", "'\"'\"'")
            variables, words = {"EXTRA_LLAMA_CPP_ARGS": f"-p {free_port()} -d '{quoted}'"}, []
        told = subprocess.run([binary, "llama-cpp-rpc", *words], env=env | variables, capture_output=True, timeout=60)
        assert f"no device {value!r}".encode() in told.stderr, (name, told.stderr[:500])
    record(50, f"{how}: {len(ODD)} of {len(ODD)} passed on exactly")


@pytest.mark.parametrize("command", ["llama-cpp-rpc", "p2p-llama-cpp-rpc"])
def test_unknown_arguments(binary: Path, env: dict[str, str], record: Record, command: str) -> None:
    """Row 50."""
    variables = {"EXTRA_LLAMA_CPP_ARGS": "-d 'open", "LOCALAI_TOKEN": "x"}
    cases: list[tuple[list[str], dict[str, str]]] = [
        (["--nope"], {}),
        (["--", "--nope"], {}),
        (["--backend-assets-pat", "/x", "--"], {}),
        ([], variables),
    ]
    for words, more in cases:
        told = subprocess.run(
            [binary, command, *words], env=env | more | {"TERM": "dumb"}, capture_output=True, text=True, timeout=60
        )
        error, hint, *rest = told.stderr.splitlines()
        assert (told.returncode, rest) == (2, []), told.stderr
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")
    record(50, f"{command}: {len(cases)} of {len(cases)} unknown flags are one clear error")
