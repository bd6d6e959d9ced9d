"""Goal: one file, copied and started, serves a real llama.cpp client as the bare server would."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs_root
from tests.live.support import (
    children,
    free_port,
    generate,
    hello,
    serving,
    wait_for_hello,
    wait_until_gone,
)


def run(binary: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The finished program and what it printed."""
    return subprocess.run([binary, *words], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_greedy_output_equals_the_bare_servers(
    binary: Path, clients: Path, tree: Path, tiny_model: Path, env: dict[str, str]
) -> None:
    bare_port, port = free_port(), free_port()
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(bare_port)], bare_port, env):
        expected = generate(clients, tiny_model, f"127.0.0.1:{bare_port}")
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env):
        assert generate(clients, tiny_model, f"127.0.0.1:{port}") == expected
    assert len(expected) > 10


def test_a_carried_libc_is_the_one_that_runs(
    libc_binary: Path, clients: Path, tree: Path, tiny_model: Path, env: dict[str, str], assets: Path
) -> None:
    bare_port, port = free_port(), free_port()
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(bare_port)], bare_port, env):
        expected = generate(clients, tiny_model, f"127.0.0.1:{bare_port}")
    with serving([libc_binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env) as running:
        assert generate(clients, tiny_model, f"127.0.0.1:{port}") == expected
        assert Path(f"/proc/{running.server}/exe").readlink().name.startswith("ld")
        mapped = {
            line.split()[-1] for line in Path(f"/proc/{running.server}/maps").read_text().splitlines() if "/" in line
        }
    assert any(path.endswith("/backend-assets/lib/libc.so.6") for path in mapped)
    assert any("libggml-cpu-" in path for path in mapped)
    assert [path for path in mapped if ".so" in path and not path.startswith(str(assets))] == []


def test_llama_bench_runs_through_it(binary: Path, clients: Path, tiny_model: Path, env: dict[str, str]) -> None:
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env):
        command: list[str | Path] = [clients / "llama-bench", "-m", tiny_model, "--rpc", f"127.0.0.1:{port}"]
        command += ["-ngl", "99", "-p", "16", "-n", "8", "-r", "1", "-o", "json"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows = json.loads(result.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(16, 0), (0, 8)]
    assert all("RPC" in row["backends"] and row["avg_ts"] > 0 for row in rows)


@pytest.mark.parametrize("source", ["flag", "variable", "local-ai variable", "after --", "mixture"])
def test_arguments_reach_the_server(binary: Path, env: dict[str, str], source: str) -> None:
    port = str(free_port())
    text = f"-p {port} -t '1' -d \"CPU\""
    words = {
        "flag": ["--llama-cpp-args", text],
        "variable": [],
        "local-ai variable": [],
        "after --": ["--", "-p", port, "-t", "1", "-d", "CPU"],
        "mixture": ["--llama-cpp-args", f"-p {port}", "--", "-t", "1", "-d", "CPU"],
    }[source]
    variables = {"variable": "EXTRA_LLAMA_CPP_ARGS", "local-ai variable": "LOCALAI_EXTRA_LLAMA_CPP_ARGS"}
    more = {variables[source]: text} if source in variables else {}
    with serving([binary, "llama-cpp-rpc", *words], int(port), env | more) as running:
        seen = Path(f"/proc/{running.server}/cmdline").read_bytes().split(b"\0")
    assert seen[1:-1] == [word.encode() for word in ["-p", port, "-t", "1", "-d", "CPU"]]


def test_a_non_ascii_argument_is_told_as_it_is(binary: Path, env: dict[str, str]) -> None:
    result = run(binary, "llama-cpp-rpc", "--", "-p", str(free_port()), "-d", "Gerät ☃ 1", env=env | {"LC_ALL": "C"})
    assert "this machine offers no device 'Gerät ☃ 1'" in result.stderr


def test_the_defaults_of_the_server(binary: Path, env: dict[str, str]) -> None:
    """In a network of its own, where port 50052 is free, and nothing but loopback is there."""
    script = (
        "import subprocess, sys; sys.path.insert(0, '.')\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n"
        "from tests.live.support import wait_for_hello\n"
        "worker = subprocess.Popen([sys.argv[1], 'llama-cpp-rpc', '--'])\n"
        "print(wait_for_hello(50052, worker)); worker.terminate(); worker.wait()\n"
    )
    command: list[str | Path] = ["unshare", "-rn", sys.executable, "-c", script, binary]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets us make no network namespace")
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "(7, 0, 0)" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "usage: worker llama-cpp-rpc -- <llama-rpc-server-args>"),
        (["--", "--nope"], 2, "rpc-server has no argument '--nope'"),
        (["--", "-H", "example"], 2, "an IPv4 address"),
        (["--", "-H", "192.0.2.1"], 1, "cannot listen on 192.0.2.1:50052"),
        (["--", "-p", "99999"], 2, "a number from 1 to 65535"),
        (["--backend-assets-path", "/dev/null/x", "--", "-H", "127.0.0.9"], 4, "/dev/null is not a directory"),
    ],
)
def test_one_clear_error(binary: Path, env: dict[str, str], words: list[str], code: int, message: str) -> None:
    result = run(binary, "llama-cpp-rpc", *words, env=env)
    error, hint, *rest = result.stderr.splitlines()
    assert (result.returncode, result.stdout, rest) == (code, "", [])
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


def test_a_taken_port_is_told(binary: Path, env: dict[str, str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        result = run(binary, "llama-cpp-rpc", "--", "-p", str(holder.getsockname()[1]), env=env)
    assert result.returncode == 1
    assert "address already in use" in result.stderr


def test_a_drop_in_for_local_ai(binary: Path, env: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "local-ai"
    link.symlink_to(binary)
    port = free_port()
    with serving([link, "worker", "llama-cpp-rpc", "--", "-p", str(port)], port, env) as running:
        assert hello(running.port) == (7, 0, 0)


def test_no_python_is_left_beside_the_server(binary: Path, env: dict[str, str], assets: Path) -> None:
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env) as running:
        assert str(Path(f"/proc/{running.server}/exe").readlink()).startswith(str(assets))
        for pid in (running.process.pid, running.server):
            assert "libpython" not in Path(f"/proc/{pid}/maps").read_text()
        assert not list(Path(env["TMPDIR"]).glob("_MEI*/*python*")), "the interpreter stays on the disk"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGSEGV])
def test_killing_what_was_started_ends_the_server(binary: Path, env: dict[str, str], number: int) -> None:
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env) as running:
        server = running.server
        running.process.send_signal(number)
        assert wait_until_gone(server), f"the server outlived signal {number}"
    assert hello(port) is None


def test_ctrl_c_on_a_terminal_ends_the_server(binary: Path, env: dict[str, str]) -> None:
    port = free_port()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(binary, [str(binary), "llama-cpp-rpc", "--", "-p", str(port)], env)
    try:
        wait_for_hello(port)
        (server,) = children(pid)
        os.write(terminal, b"\x03")
        assert wait_until_gone(server)
        assert wait_until_gone(pid)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def test_the_server_sees_the_users_environment(binary: Path, env: dict[str, str]) -> None:
    port = free_port()
    user = env | {"LD_LIBRARY_PATH": "/opt/mine:/opt/more", "TOKEN": "sesame", "UMLAUT": "ä", "EMPTY": ""}
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, user) as running:
        block = Path(f"/proc/{running.server}/environ").read_bytes()
    seen = dict(entry.decode().split("=", 1) for entry in block.split(b"\0") if entry)
    assert seen == {name: value for name, value in user.items() if name != "TOKEN"}


@pytest.fixture
def planted(tmp_path: Path) -> bytes:
    """A library that leaves a mark when it is loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the planted library with")
    (tmp_path / "planted.c").write_text(
        '#include <stdio.h>\n#include <stdlib.h>\n'
        "__attribute__((constructor)) static void mark(void)\n"
        '{ FILE *file = fopen(getenv("MARK"), "w"); if (file) fclose(file); }\n'
    )  # fmt: skip
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "planted.so", tmp_path / "planted.c"], check=True)
    return (tmp_path / "planted.so").read_bytes()


def test_no_planted_library_is_loaded(
    binary: Path, env: dict[str, str], assets: Path, tmp_path: Path, planted: bytes
) -> None:
    here, library_path, mark = tmp_path / "here", tmp_path / "libs", tmp_path / "mark"
    here.mkdir()
    library_path.mkdir()
    for name in ("libggml-vulkan.so", "libggml-cpu-zzz.so", "libggml-cuda.so"):
        (here / name).write_bytes(planted)
    for name in ("libggml-base.so.0", "libggml.so.0"):
        (library_path / name).write_bytes(planted)
    user = env | {"MARK": str(mark), "LD_LIBRARY_PATH": str(library_path)}
    port = free_port()
    command: list[str | Path] = [binary, "llama-cpp-rpc", "--", "-p", str(port)]
    with serving(command, port, user, cwd=here):
        assert not mark.exists(), "a library from the user's directory was loaded"
    util = next(assets.glob("*/backend-assets/util"))
    (util / "libggml-cpu-zzz.so").write_bytes(planted)
    with serving(command, port, user, cwd=here):
        assert not mark.exists(), "a library beside the server was loaded"
    # The bare server does load it: the mark would have shown.
    bare = next(assets.glob("*.damaged/backend-assets/util")) / "llama-cpp-rpc-server"
    with serving([bare, "-p", str(port)], port, user):
        assert mark.exists(), "the planted library marks nothing: this test could not fail"


def test_the_baseline_variant_serves_alone(tree: Path, env: dict[str, str], tmp_path: Path) -> None:
    """On a CPU without AVX only the plain x64 backend can load: take the others away."""
    util = tmp_path / "util"
    shutil.copytree(tree / "backend-assets/util", util)
    for library in util.glob("libggml-cpu-*.so"):
        if library.name != "libggml-cpu-x64.so":
            library.unlink()
    port = free_port()
    with serving([util / "llama-cpp-rpc-server", "-p", str(port)], port, env) as running:
        assert "libggml-cpu-x64.so" in Path(f"/proc/{running.process.pid}/maps").read_text()
        assert hello(port) == (7, 0, 0)


@needs_root
def test_an_empty_root_file_system_is_enough(binary: Path, tmp_path: Path) -> None:
    """libc, libz, /proc and a temporary directory; no shell, no Python, no network but loopback."""
    root = tmp_path / "root"
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    needed = [Path(word) for word in listed.split() if word.startswith("/")]
    # The interpreter, its modules and the server need the other parts of libc.
    more = [
        needed[0].parent / name for name in ("libm.so.6", "libpthread.so.0", "libdl.so.2", "libutil.so.1", "librt.so.1")
    ]
    for library in needed + [path for path in more if path.exists()]:
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library.resolve(), target)
    for directory in ("proc", "tmp"):
        (root / directory).mkdir()
    (root / "tmp").chmod(0o1777)
    shutil.copy(binary, root / "worker")
    script = (
        "import os, subprocess, sys; sys.path.insert(0, '.')\n"
        "from tests.live.support import wait_for_hello\n"
        "root = sys.argv[1]\n"
        "subprocess.run(['mount', '-t', 'proc', 'proc', root + '/proc'], check=True)\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n"
        "enter = lambda: (os.chroot(root), os.chdir('/'))\n"
        "worker = subprocess.Popen(['/worker', 'llama-cpp-rpc', '--'], env={}, preexec_fn=enter)\n"
        "print(wait_for_hello(50052, worker)); worker.terminate(); worker.wait()\n"
    )
    command: list[str | Path] = ["unshare", "-n", "-m", "-p", "--fork", sys.executable, "-c", script, root]
    if subprocess.run(["unshare", "-n", "-m", "-p", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets us make no namespaces")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "(7, 0, 0)" in result.stdout, result.stderr


def test_a_client_that_leaves_early_does_not_end_the_server(binary: Path, env: dict[str, str]) -> None:
    """rpc-server answers into a connection that was reset: with SIGPIPE at its default it would die."""
    port = free_port()
    ask = b"\x0e" + (24).to_bytes(8, "little") + bytes(24) + (b"\x0f" + bytes(8)) * 2000
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
                client.sendall(ask)
        assert hello(port) == (7, 0, 0)
