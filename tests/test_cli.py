"""Goal: each command line does one thing or gives one clear error with a remedy and the right exit code."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

from app import cli, p2p, p2p_stub
from app.errors import ExitCode


def run(capsys: pytest.CaptureFixture[str], *words: str, room: ModuleType = p2p_stub) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = cli.main(["worker", *words], room, {})
    out, err = capsys.readouterr()
    return code, out, err


def test_a_bare_command_is_the_usage_error_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["llama-cpp-rpc"], ["worker", "llama-cpp-rpc"], ["llama-cpp-rpc", "--log-level", "debug"]):
        code, out, err = run(capsys, *words)
        assert code == ExitCode.USAGE
        assert out == ""
        assert err.startswith("error: usage: worker llama-cpp-rpc -- <llama-rpc-server-args>\nhint: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "unknown command: frobnicate"),
        (["version", "--", "x"], "version takes nothing after --"),
        (["llama-cpp-rpc", "50055"], "unrecognized arguments: 50055"),
        (["assets"], "the following arguments are required: action"),
        (["assets", "burn"], "invalid choice: 'burn'"),
    ],
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    code, out, err = run(capsys, *words)
    assert code == ExitCode.USAGE
    assert out == ""
    assert err.splitlines()[0].startswith("error: ")
    assert message in err
    assert err.splitlines()[1].startswith("hint: ")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == ExitCode.OK
    for name in (
        "llama-cpp-rpc",
        "p2p-llama-cpp-rpc",
        "connect",
        "serve",
        "bench",
        "list",
        "token",
        "devices",
        "assets",
        "version",
        "licenses",
    ):
        assert f"  {name} " in out


def test_nothing_at_all_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == ExitCode.USAGE
    assert "usage: worker COMMAND" in out


def test_help_of_a_command_tells_its_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["worker", "llama-cpp-rpc", "--help"], p2p_stub, {})
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in (
        "LOCALAI_EXTRA_LLAMA_CPP_ARGS",
        "BACKEND_ASSETS_PATH",
        "--extra-llama-cpp-args",
        "/tmp/localai/backend_data",
    ):
        assert name in out


@pytest.mark.parametrize(
    "words",
    [
        ["p2p-llama-cpp-rpc"],
        ["connect", "--nonsense"],
        ["serve", "--", "-m", "model.gguf"],
        ["bench"],
        ["list", "--json"],
        ["token"],
        ["worker", "p2p-llama-cpp-rpc", "--", "-c"],
    ],
)
def test_a_build_without_p2p_says_so(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (ExitCode.NO_P2P, "")
    assert err.startswith("error: p2p not enabled\nhint: p2p mode is not enabled in this build; ")


def test_the_stub_has_the_names_and_signatures_of_p2p() -> None:
    names = [name for name in vars(p2p_stub) if not name.startswith("_") and inspect.isfunction(vars(p2p_stub)[name])]
    assert sorted(names) == ["bench", "connect", "list_workers", "new_token", "serve", "work"]
    for name in names:
        assert inspect.signature(getattr(p2p, name)) == inspect.signature(getattr(p2p_stub, name)), name
    assert p2p.SUPPORTED
    assert not p2p_stub.SUPPORTED


def test_the_small_build_imports_nothing_of_p2p() -> None:
    script = (
        "import app.main_nop2p, sys\n"
        "libraries = ('zeroconf', 'cryptography', 'rich')\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in libraries or m.startswith('app.p2p.')))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_exec_path_imports_neither_p2p_nor_rich() -> None:
    """The full build pays for p2p only when it is used: start-up is part of the promise."""
    script = (
        "import sys; from app import cli, p2p; cli.main(['worker', 'llama-cpp-rpc'], p2p, {})\n"
        "libraries = ('zeroconf', 'cryptography', 'rich', 'asyncio', 'ssl')\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in libraries))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
