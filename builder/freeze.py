"""PyInstaller over `worker.spec`, and the file's own test before it reaches dist/."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from app.p2p import rpc
from builder.paths import BUILD, DIST, PYTHON, ROOT, SPEC
from builder.steps import digest, fail, once, run, say

_START_LIMIT = 60.0
"""Seconds until the frozen file's server must answer: it is some tenths on any machine that can build."""
_P2P_ONLY = ("zeroconf", "cryptography", "app.p2p")


def freeze(payload: Path, openssl: Path | None, *, p2p: bool, name: str, head: Path | None = None) -> Path:
    """Make `dist/<name>`, tested, of the packed parts for the worker and for the head.

    `openssl`: a directory of libraries in place of the interpreter's.
    """
    target = DIST / name
    parts = {"--payload": payload, "--head": head, "--openssl": openssl}
    carried = [file for part in parts.values() if part for file in part.iterdir()]
    sources = [*(ROOT / "app").rglob("*.py"), SPEC, *(ROOT / "builder").glob("*.py")]
    key = digest(p2p, name, _strip(), files=[*carried, *sources, *(ROOT / "requirements").glob("*.txt")])

    def make() -> None:
        work = BUILD / "frozen" / name
        shutil.rmtree(work, ignore_errors=True)
        flags: list[object] = [word for flag, part in parts.items() if part for word in (flag, part)]
        flags += [*([] if p2p else ["--no-p2p"]), *(["--strip"] if _strip() else [])]
        if not _strip():
            say("strip is missing: the file is larger and starts slower than it could; install binutils")
        run(
            f"freezing {name}",
            [PYTHON, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
            + ["--workpath", work / "work", "--distpath", work, SPEC, "--", *flags],
            env={
                "PATH": f"{_shims()}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PYINSTALLER_CONFIG_DIR": str(BUILD / "pyinstaller"),
            },
            hint="the lines above name the cause",
        )
        contents = _contents(work / "worker")
        _check_contents(contents, p2p=p2p)
        _self_test(work / "worker")
        DIST.mkdir(exist_ok=True)
        (work / "worker").replace(target)
        say(f"{target}: {target.stat().st_size / 1e6:.1f} MB, tested")
        _say_largest(contents)

    once(f"frozen-{name}", key, [target], make)
    return target


def _strip() -> bool:
    return shutil.which("strip") is not None


def _shims() -> Path:
    """PyInstaller calls `objcopy` to attach the archive; appending it is all that the bootloader needs."""
    directory = BUILD / "shims"
    directory.mkdir(parents=True, exist_ok=True)
    shim = directory / "objcopy"
    shim.write_text(
        "#!/bin/sh\n"
        "# objcopy --add-section pydata=ARCHIVE PROGRAM\n"
        'case "$1 $2" in "--add-section pydata="*) exec cat "${2#pydata=}" >> "$3" ;; esac\n'
        'echo "unexpected call: objcopy $*" >&2; exit 1\n'
    )
    shim.chmod(0o755)
    return directory


def _contents(binary: Path) -> dict[str, int]:
    """Everything in the file and its bytes there; modules are named as they are imported."""
    script = (
        "import json, sys\n"
        "from PyInstaller.archive.readers import CArchiveReader\n"
        "archive = CArchiveReader(sys.argv[1])\n"
        "sizes = {name.replace('/', '.'): entry[1] for name, entry in archive.toc.items() if name != 'PYZ.pyz'}\n"
        "modules = archive.open_embedded_archive('PYZ.pyz').toc\n"
        "print(json.dumps(sizes | {name: entry[2] for name, entry in modules.items()}))\n"
    )
    listed = subprocess.run([PYTHON, "-c", script, binary], capture_output=True, text=True, check=True).stdout
    sizes: dict[str, int] = json.loads(listed)
    return sizes


def _check_contents(contents: dict[str, int], *, p2p: bool) -> None:
    """End the build unless the file holds p2p exactly when it should."""
    found = [name for name in contents if any(f"{name}.".startswith(f"{room}.") for room in _P2P_ONLY)]
    if p2p and "app.p2p" not in contents:
        fail("the full build holds no p2p", "does app/__main__.py still import it?")
    if not p2p and found:
        fail(f"the build without p2p holds {found[0]}", "which module of the small build imports it?")


def _say_largest(contents: dict[str, int]) -> None:
    """The ten largest things in the file; the modules of a package count together."""
    packages: Counter[str] = Counter()
    for name, size in contents.items():
        is_module = ".so" not in name and not name.startswith(("payload.", "head."))
        packages[name.partition(".")[0] if is_module else name] += size
    largest = (f"{name} {size / 1e6:.2f}" for name, size in packages.most_common(10))
    say(f"largest, in MB as packed: {', '.join(largest)}")


def _self_test(binary: Path) -> None:
    """The file must tell its version, unpack to a fresh directory and answer a HELLO over RPC."""
    with tempfile.TemporaryDirectory(prefix="worker-selftest-") as scratch:
        env = {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "BACKEND_ASSETS_PATH": f"{scratch}/assets"}
        run(f"testing {binary.name} (version)", [binary, "version", "--json"], env=env)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = Path(scratch, "log")
        with log.open("w") as output:
            server = subprocess.Popen(
                [binary, "llama-cpp-rpc", "--", "-p", str(port)], env=env, stdout=output, stderr=output
            )
            try:
                if not _answers_hello(port, server):
                    fail(f"{binary} does not serve: {log.read_text()[-2000:]}", "see the log above")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(10)


def _answers_hello(port: int, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                rpc.hello(client, 5)
                return True
        except (OSError, rpc.RpcError):
            time.sleep(0.05)
    return False
