"""The compiled part: CMake over the pinned llama.cpp, staged as the tree that is carried."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from app.manifest import ServerOption
from builder import bundled_libc, source
from builder.elf import Elf, newest_glibc
from builder.paths import BUILD, DIST, NATIVE, PYTHON, VENV
from builder.steps import digest, fail, once, run, safe_members

GLIBC = (2, 28)
"""The oldest glibc that the native part must run with (RHEL 8, Debian 10)."""
TARGETS = ("x86_64", "aarch64")
HERE = Path(__file__).parent
_HINT = "the lines above name the cause; `python3 build.py clean` starts from nothing"
EMULATOR = "qemu-aarch64-static"
EMULATOR_ROOT = Path("/usr/aarch64-linux-gnu")
"""Where Debian puts the C library of another architecture (libc6-arm64-cross)."""
_FACTS = "facts.json"
UTIL = Path("backend-assets/util")
SERVER = UTIL / "llama-cpp-rpc-server"


@dataclass(frozen=True)
class NativeOptions:
    """What is to be compiled, with what."""

    target: str
    compiler: str
    bundle_libc: bool

    @property
    def name(self) -> str:
        """The name of its build directory."""
        return f"{self.target}-{self.compiler}"


@dataclass(frozen=True)
class Tree:
    """The staged files, and what was found out about them."""

    path: Path
    target: str
    compiler: str
    glibc: str
    libc_bundled: bool
    llama_cpp: str
    commit: str
    rpc_protocol: str


def build(options: NativeOptions, llama_cpp: source.Source) -> Tree:
    """Compile and stage the payload's tree."""
    directory = BUILD / "native" / options.name
    tree = BUILD / "tree" / (options.name + ("-libc" if options.bundle_libc else ""))

    def make() -> None:
        _compile(directory, options, llama_cpp, "payload")
        shutil.rmtree(tree, ignore_errors=True)
        install = [VENV / "bin/cmake", "--install", directory, "--component", "payload", "--prefix", tree]
        run(f"staging the native part for {options.name}", install, hint=_HINT)
        _mend_and_check(tree, options)

    code = [HERE / name for name in ("native.py", "elf.py", "bundled_libc.py")]
    key = digest(options, llama_cpp.sha256, files=[*NATIVE.iterdir(), *code])
    once(f"native-{tree.name}", key, [tree / SERVER], make)
    glibc = ".".join(map(str, newest_glibc(_files(tree / UTIL))))
    return Tree(
        tree,
        options.target,
        _compiler_name(options, directory),
        glibc,
        options.bundle_libc,
        llama_cpp.version,
        source.COMMIT,
        llama_cpp.rpc_protocol,
    )


def build_clients(options: NativeOptions, llama_cpp: source.Source) -> Path:
    """Compile llama.cpp's own clients, for the tests; the directory that holds them."""
    directory = BUILD / "clients" / options.name
    key = digest(options.name, llama_cpp.sha256, files=NATIVE.iterdir())
    programs = [directory / "bin" / name for name in ("llama-bench", "llama-completion", "llama-server")]
    once(f"clients-{options.name}", key, programs, lambda: _compile(directory, options, llama_cpp, "clients"))
    return directory / "bin"


def can_emulate() -> bool:
    """Whether this machine can start what is compiled for aarch64."""
    return shutil.which(EMULATOR) is not None and (EMULATOR_ROOT / "lib/libc.so.6").exists()


def export(tree: Tree) -> Path:
    """Write the staged tree and what is known of it as one archive, for `build.py --native` on the target itself."""
    archive = DIST / f"worker-native-{tree.target}.tar.xz"
    DIST.mkdir(exist_ok=True)
    facts = json.dumps({**vars(tree), "path": ""}).encode()
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tree.path / "backend-assets", "backend-assets")
        member = tarfile.TarInfo(_FACTS)
        member.size = len(facts)
        tar.addfile(member, io.BytesIO(facts))
    return archive


def imported(archive: Path) -> Tree:
    """The tree that `export` wrote on another machine."""
    if not archive.is_file():
        fail(f"{archive} is missing", "`python3 build.py --target aarch64` makes it on another machine")
    directory = BUILD / "imported" / digest(files=[archive])[:12]
    if not (directory / _FACTS).exists():
        with safe_members(tarfile.open(archive)) as tar:
            tar.extractall(directory)  # noqa: S202 - safe_members refuses what leaves it
    facts = json.loads((directory / _FACTS).read_text())
    if facts["target"] != platform.machine():
        fail(
            f"{archive} is for {facts['target']}",
            f"this machine is {platform.machine()}: take the archive to the target",
        )
    # The payload holds the assets alone.
    tree = BUILD / "tree" / f"imported-{directory.name}"
    shutil.copytree(directory / "backend-assets", tree / "backend-assets", dirs_exist_ok=True)
    return Tree(**{**facts, "path": tree})


def server_options(tree: Tree) -> tuple[ServerOption, ...]:
    """The server's option table, as its `--help` prints it."""
    result = subprocess.run(
        [tree.path / SERVER, "--help"], cwd=tree.path / UTIL, capture_output=True, text=True, timeout=60, check=False
    )
    pattern = re.compile(r"^\s+(-\w), (--[\w-]+)(?: (\S+))?\s{2,}", re.MULTILINE)
    found = tuple(ServerOption((short, long), value) for short, long, value in pattern.findall(result.stderr))
    if not any("--port" in option.flags for option in found):
        fail("cannot read the server's options from its --help", f"it printed: {result.stderr[-300:]!r}")
    return found


def _compile(directory: Path, options: NativeOptions, llama_cpp: source.Source, what: str) -> None:
    """Configure and build `what`, the payload or the clients. Both go on where an earlier run ended."""
    command: list[object] = [VENV / "bin/cmake", "--fresh", "-G", "Ninja", "-S", NATIVE, "-B", directory]
    command += [f"-DCMAKE_MAKE_PROGRAM={VENV / 'bin/ninja'}", f"-DLLAMA_CPP_SOURCE={llama_cpp.path}"]
    command += ["-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={source.COMMIT}"]
    command += [f"-DWORKER_CLIENTS={'ON' if what == 'clients' else 'OFF'}"]
    if options.compiler == "zig":
        command += [f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'zig-toolchain.cmake'}", f"-DZIG={_zig()}"]
        command += [f"-DZIG_TARGET={options.target}-linux-gnu.{'.'.join(map(str, GLIBC))}"]
    configured = f"configured-{what}-{options.name}"
    once(
        configured,
        digest(command, files=NATIVE.iterdir()),
        [directory / "build.ninja"],
        lambda: run(f"configuring the {what} for {options.name}", command, env=_environment(), hint=_HINT),
    )
    build_command = [VENV / "bin/cmake", "--build", directory, "--target", what]
    run(f"compiling the {what} for {options.name} (minutes)", build_command, env=_environment(), hint=_HINT)


def _mend_and_check(tree: Path, options: NativeOptions) -> None:
    for file in _files(tree):
        elf = Elf(file)
        elf.prefer_own_libraries()
        if Elf(file).runpath is not None or Elf(file).rpath != "$ORIGIN":
            fail(
                f"{file} would load libraries from elsewhere", "its RPATH must be $ORIGIN and there must be no RUNPATH"
            )
        if options.compiler == "zig" and elf.glibc > GLIBC:
            fail(f"{file} needs glibc {'.'.join(map(str, elf.glibc))}", f"the limit is {'.'.join(map(str, GLIBC))}")
    if options.bundle_libc:
        bundled_libc.add(tree)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _zig() -> str:
    command = "import ziglang, pathlib; print(pathlib.Path(ziglang.__file__).parent / 'zig')"
    return subprocess.run([PYTHON, "-c", command], capture_output=True, text=True, check=True).stdout.strip()


def _environment() -> dict[str, str]:
    # zig keeps what it compiled of its libc here; without it HOME would be written to.
    return {"ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig-cache"), "NINJA_STATUS": "[%f/%t] ", "CC": "", "CXX": ""}


def _compiler_name(options: NativeOptions, directory: Path) -> str:
    if options.compiler == "zig":
        return "zig " + subprocess.run([_zig(), "version"], capture_output=True, text=True, check=True).stdout.strip()
    cache = (directory / "CMakeCache.txt").read_text()
    found = re.search(r"CMAKE_CXX_COMPILER:\w+=(\S+)", cache)
    return os.path.basename(found[1]) if found else "system"  # noqa: PTH119 - a name, not a path
