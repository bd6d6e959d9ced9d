"""Goal: the server sees the user's environment and no planted library, and dies with whoever was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from app import launch, onefile
from app.payload import Assets, ensure
from tests.conftest import MakePayload, needs_root, nobody


@pytest.fixture
def assets(make_payload: MakePayload, base: Path) -> Assets:
    return ensure(make_payload(), str(base), {})


def environment(assets: Assets, **environ: str) -> dict[str, str]:
    return launch.server_command(assets, [], environ).env


def test_the_users_environment_is_passed_on(assets: Assets) -> None:
    user = {"HOME": "/home/u", "CUDA_VISIBLE_DEVICES": "1", "LANG": "de_DE.UTF-8", "PATH": "/bin"}
    assert environment(assets, **user) == user


def test_the_bootloaders_variables_are_gone(assets: Assets) -> None:
    assert environment(assets, _PYI_ARCHIVE_FILE="x", _PYI_APPLICATION_HOME_DIR="x", _MEIPASS2="x", A="b") == {"A": "b"}


def test_the_library_path_is_as_the_user_had_it(assets: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onefile, "home", lambda: Path("/tmp/_MEIabc"))
    frozen = {"LD_LIBRARY_PATH": "/tmp/_MEIabc:/opt/lib", "LD_LIBRARY_PATH_ORIG": "/opt/lib"}
    assert environment(assets, **frozen) == {"LD_LIBRARY_PATH": "/opt/lib"}
    assert environment(assets, LD_LIBRARY_PATH="/tmp/_MEIabc") == {}
    assert environment(assets, LD_PRELOAD="/opt/mine.so") == {"LD_PRELOAD": "/opt/mine.so"}


def test_the_token_does_not_reach_the_server(assets: Assets) -> None:
    assert environment(assets, TOKEN="s", LOCALAI_TOKEN="s", LOCALAI_P2P_TOKEN="s", HF_TOKEN="kept") == {
        "HF_TOKEN": "kept"
    }


def test_our_libraries_come_after_the_users(make_payload: MakePayload, base: Path) -> None:
    files = {"backend-assets/util/llama-cpp-rpc-server": b"x", "backend-assets/lib/libvulkan.so.1": b"y"}
    assets = ensure(make_payload(files), str(base), {})
    own = base / "lib"
    own.mkdir(mode=0o755)
    carried = assets.path / "backend-assets/lib"
    assert environment(assets, LD_LIBRARY_PATH="/opt/lib")["LD_LIBRARY_PATH"] == f"/opt/lib:{carried}:{own}"
    assert environment(assets)["LD_LIBRARY_PATH"] == f"{carried}:{own}"
    skipping = environment(assets, LOCALAI_SKIP_LIBRARY_PATH="1", LD_LIBRARY_PATH="/opt/lib")
    assert skipping["LD_LIBRARY_PATH"] == "/opt/lib"


@pytest.mark.parametrize("spoil", ["open", "foreign", "link"])
@needs_root
def test_a_library_directory_that_others_can_write_is_left_out(
    assets: Assets, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = assets.base / "lib"
    if spoil == "link":
        own.symlink_to("/tmp")
    else:
        own.mkdir()
        own.chmod(0o777 if spoil == "open" else 0o755)
        os.chown(own, nobody if spoil == "foreign" else -1, -1)
    assert "LD_LIBRARY_PATH" not in environment(assets)
    assert f"{own} is left out" in caplog.text


def test_a_carried_loader_runs_the_server(make_payload: MakePayload, base: Path) -> None:
    files = {"backend-assets/util/llama-cpp-rpc-server": b"x", "backend-assets/lib/ld.so": b"y"}
    assets = ensure(make_payload(files), str(base), {})
    loader = str(assets.path / "backend-assets/lib/ld.so")
    assert launch.server_command(assets, ["-c"], {}).argv == [loader, str(assets.server), "-c"]
    assert launch.server_command(assets, ["-c"], {"LOCALAI_SKIP_LIBRARY_PATH": "1"}).argv == [str(assets.server), "-c"]


def test_a_copy_of_the_server_runs_where_it_lies(assets: Assets, tmp_path: Path) -> None:
    """With directories for the very end of the library path."""
    environ = {"LD_LIBRARY_PATH": "/opt/lib"}
    copy = tmp_path / "server"
    command = launch.server_command(assets, ["-c"], environ, program=copy, libraries=[Path("/opt/vulkan")])
    assert (command.argv, command.cwd) == ([str(copy), "-c"], tmp_path)
    assert command.env["LD_LIBRARY_PATH"] == "/opt/lib:/opt/vulkan"


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "ended with exit status 3"), (-4, "was killed by SIGILL"), (-99, "was killed by signal 99")],
)
def test_how_a_child_ended_is_told(status: int, words: str) -> None:
    assert launch.tell_status(status) == words


def test_paths_that_ggml_reads_become_absolute(assets: Assets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    env = environment(assets, LLAMA_CACHE="cache", GGML_BACKEND_PATH="b.so", XDG_CACHE_HOME="/abs")
    assert env == {
        "LLAMA_CACHE": f"{tmp_path}/cache",
        "GGML_BACKEND_PATH": f"{tmp_path}/b.so",
        "XDG_CACHE_HOME": "/abs",
    }


_SERVER = """\
#!{python}
import json, os, resource, signal, sys
print(json.dumps({{
    "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "ignored": [s for s in (signal.SIGPIPE, signal.SIGXFSZ) if signal.getsignal(s) == signal.SIG_IGN],
    "open": [os.path.realpath("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")],
}}), flush=True)
if "wait" in sys.argv: signal.pause()
"""

_BECOME = """
import sys
from pathlib import Path
from app import embedded, launch, manifest, payload
directory, base, *arguments = sys.argv[1:]
table = manifest.from_json(Path(directory, "manifest").read_bytes())
carried = embedded.Payload(table, lambda _: Path(directory, "archive").read_bytes())
assets = payload.ensure(carried, base, {})
import os
launch.become(launch.server_command(assets, arguments, os.environ), [assets.fd])
"""


@pytest.fixture
def become(make_payload: MakePayload, base: Path, tmp_path: Path) -> list[str]:
    """The command that becomes a server which tells what it sees; append its arguments."""
    source = _SERVER.format(python=sys.executable)
    # Python itself ignores SIGPIPE at its start: the interpreter is told not to hide what it was given.
    payload = make_payload({"backend-assets/util/llama-cpp-rpc-server": source.encode()})
    (tmp_path / "manifest").write_bytes(payload.manifest.to_json())
    (tmp_path / "archive").write_bytes(payload.read_segment(0))
    (tmp_path / "become.py").write_text(textwrap.dedent(_BECOME))
    return [sys.executable, str(tmp_path / "become.py"), str(tmp_path), str(base)]


def test_arguments_reach_the_server_exactly(become: list[str]) -> None:
    arguments = ["", "a b", "'q'", '"', "Ж é ☃", "\\", "$HOME", "-x=1", "x" * 100_000]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "EXTRA": "Ж"}
    out = subprocess.run([*become, *arguments], capture_output=True, check=True, env=env).stdout
    seen = json.loads(out)
    assert seen["argv"] == arguments
    assert seen["env"]["EXTRA"] == "Ж"
    assert seen["cwd"].endswith("backend-assets/util")
    assert seen["core"] == [0, 0]


def test_the_process_is_replaced_and_keeps_the_lock(become: list[str], base: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    server = subprocess.Popen([*become, "wait"], stdout=subprocess.PIPE, env=env)
    assert server.stdout is not None
    seen = json.loads(server.stdout.readline())
    assert seen["pid"] == server.pid
    digest = next(path.name for path in base.iterdir() if len(path.name) == 64)
    assert str(base / digest) in seen["open"], "the lock on the directory was lost"
    server.kill()
    server.communicate()


def test_the_server_dies_with_its_parent(become: list[str]) -> None:
    script = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=1); print(p.pid, flush=True); p.wait()"
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    parent = subprocess.Popen([sys.executable, "-c", script, *become, "wait"], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    parent.stdout.readline()
    seen = json.loads(parent.stdout.readline())
    watch = os.pidfd_open(seen["pid"])
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    import select

    assert select.select([watch], [], [], 10)[0], "the server outlived its parent"
    os.close(watch)
