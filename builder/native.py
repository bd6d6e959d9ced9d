"""The compiled part: CMake over the pinned llama.cpp, staged as the tree that is carried."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.manifest import ServerOption
from app.payload import LIBRARIES, PROBE, SERVER
from builder import bundled_libc, source
from builder.cuda import CudaSdk
from builder.elf import Elf, newest_glibc
from builder.paths import BUILD, NATIVE, PYTHON, VENV
from builder.steps import digest, fail, once, run, say
from builder.vulkan import VulkanSdk

GLIBC = (2, 28)
"""The oldest glibc that the native part must run with (RHEL 8, Debian 10)."""
TARGETS = ("x86_64", "aarch64")
_CODE = [Path(__file__).with_name(name) for name in ("native.py", "elf.py", "bundled_libc.py", "cuda.py")]
_HINT = "the lines above name the cause; `python3 build.py clean` starts from nothing"
EMULATOR = "qemu-aarch64-static"
EMULATOR_ROOT = Path("/usr/aarch64-linux-gnu")
"""Where Debian puts the C library of another architecture (libc6-arm64-cross)."""
CUDA_BACKEND = "libggml-cuda.so"
HEAD_PROGRAMS = ("llama-server", "llama-bench")
_OF_THE_SYSTEM = re.compile(r"(ld-linux|lib(c|m|dl|rt|pthread)\.so).*")
_PROBE_LIMIT = 60.0
"""Seconds for a CPU variant to compute a small thing."""
UTIL = Path(SERVER).parent


@dataclass(frozen=True)
class NativeOptions:
    """What is to be compiled, with what."""

    target: str
    compiler: str
    bundle_libc: bool = False
    gpu: str = "none"
    """`none`, `vulkan` or `cuda`."""
    vulkan: VulkanSdk | None = None
    """Where there is one the build directory is set up for it, whether or not `gpu` asks for it."""
    cuda: CudaSdk | None = None
    left_out: str = ""
    """Why there is no GPU backend, where the user did not choose so."""

    @property
    def gpu_sdk(self) -> str:
        """What the GPU backend is compiled with, or why there is none."""
        sdk = {"vulkan": self.vulkan, "cuda": self.cuda}.get(self.gpu)
        return sdk.name if sdk is not None else self.left_out

    @property
    def name(self) -> str:
        """The name of its build directory."""
        return f"{self.target}-{self.compiler}"

    @property
    def tree_name(self) -> str:
        """The name of the directory of its staged files."""
        return self.name + (f"-{self.gpu}" if self.gpu != "none" else "") + ("-libc" if self.bundle_libc else "")


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
    gpu_sdk: str
    """What its GPU backend was compiled with, or why there is none."""
    cpu_variants_run: tuple[str, ...]
    """The CPU variants that computed rightly on the building machine; the others it could not run."""


def build(options: NativeOptions, llama_cpp: source.Source) -> Tree:
    """Compile and stage the payload's tree."""
    directory = _directory(options)
    tree = BUILD / "tree" / options.tree_name
    variants = tree.with_suffix(".variants.json")

    def make() -> None:
        shutil.rmtree(tree, ignore_errors=True)
        _compile(directory, options, llama_cpp, "payload")
        _stage(directory, "payload", tree)
        if options.gpu == "vulkan":
            _stage(directory, "vulkan", tree)
        elif options.cuda is not None:
            own = directory.with_name(f"{options.name}-cuda")
            _compile(own, options, llama_cpp, "cuda")
            _stage(own, "cuda", tree)
            options.cuda.add_libraries(tree)
        _mend_and_check(tree, options)
        variants.write_text(json.dumps(_run_variants(tree, options)))

    key = digest(options, llama_cpp.sha256, files=[*NATIVE.iterdir(), *_CODE])
    once(f"native-{tree.name}", key, [tree / SERVER, variants], make)
    glibc = ".".join(map(str, newest_glibc(_files(tree / UTIL))))
    return Tree(
        path=tree,
        target=options.target,
        compiler=_compiler_name(options, directory),
        glibc=glibc,
        libc_bundled=options.bundle_libc,
        llama_cpp=llama_cpp.version,
        commit=source.COMMIT,
        rpc_protocol=llama_cpp.rpc_protocol,
        gpu_sdk=options.gpu_sdk,
        cpu_variants_run=tuple(json.loads(variants.read_text())),
    )


def build_head(options: NativeOptions, llama_cpp: source.Source) -> Path:
    """Compile and stage llama.cpp's programs for the head; they run beside the libraries of the payload's tree."""
    tree = BUILD / "tree" / f"{options.name}-head"

    def make() -> None:
        shutil.rmtree(tree, ignore_errors=True)
        _compile(_directory(options), options, llama_cpp, "head")
        _stage(_directory(options), "head", tree)
        _mend_and_check(tree, options)
        for file in _files(tree) if options.compiler == "zig" else ():
            foreign = [name for name in Elf(file).needed if not _OF_THE_SYSTEM.fullmatch(name) and "ggml" not in name]
            if foreign:
                fail(f"{file.name} needs {foreign[0]}", "what is not ggml's or the C library's must be linked in")

    key = digest(options, llama_cpp.sha256, files=[*NATIVE.iterdir(), *_CODE])
    once(f"native-{tree.name}", key, [tree / UTIL / name for name in HEAD_PROGRAMS], make)
    return tree


def build_clients(options: NativeOptions, llama_cpp: source.Source) -> Path:
    """Compile all of llama.cpp that the tests drive, with a CPU backend; the directory that holds it."""
    tree = BUILD / "clients" / options.name

    def make() -> None:
        _compile(_directory(options), options, llama_cpp, "clients")
        _stage(_directory(options), "clients", tree)

    programs = [tree / UTIL / name for name in (*HEAD_PROGRAMS, "llama-completion", "llama-cli")]
    once(f"clients-{options.name}", digest(options, llama_cpp.sha256, files=NATIVE.iterdir()), programs, make)
    return tree / UTIL


def can_emulate() -> bool:
    """Whether this machine can start what is compiled for aarch64."""
    return shutil.which(EMULATOR) is not None and (EMULATOR_ROOT / "lib/libc.so.6").exists()


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


def _directory(options: NativeOptions) -> Path:
    return BUILD / "native" / options.name


def _compile(directory: Path, options: NativeOptions, llama_cpp: source.Source, what: str) -> None:
    """Configure and build the target `what` of native/CMakeLists.txt. Both go on where an earlier run ended."""
    command: list[object] = [VENV / "bin/cmake", "--fresh", "-G", "Ninja", "-S", NATIVE, "-B", directory]
    command += [f"-DCMAKE_MAKE_PROGRAM={VENV / 'bin/ninja'}", f"-DLLAMA_CPP_SOURCE={llama_cpp.path}"]
    command += ["-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={source.COMMIT}"]
    if what == "cuda" and options.cuda is not None:
        command += ["-DWORKER_CUDA=ON", *options.cuda.cmake_options]
    elif options.compiler == "zig":
        command += [f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'zig-toolchain.cmake'}", f"-DZIG={_zig()}"]
        command += [f"-DZIG_TARGET={options.target}-linux-gnu.{'.'.join(map(str, GLIBC))}"]
    if what != "cuda" and options.vulkan is not None:
        command += ["-DWORKER_VULKAN=ON", *options.vulkan.cmake_options]
    once(
        f"configured-{directory.parent.name}-{directory.name}",
        digest(command, files=NATIVE.iterdir()),
        [directory / "build.ninja"],
        lambda: run(f"configuring {directory.name}", command, env=_environment(), hint=_HINT),
    )
    build_command = [VENV / "bin/cmake", "--build", directory, "--target", what]
    run(f"compiling the {what} for {options.name} (minutes)", build_command, env=_environment(), hint=_HINT)


def _stage(directory: Path, component: str, tree: Path) -> None:
    install = [VENV / "bin/cmake", "--install", directory, "--component", component, "--prefix", tree]
    run(f"staging the {component} of {directory.name}", install, hint=_HINT)


def _run_variants(tree: Path, options: NativeOptions) -> list[str]:
    """Let each CPU variant compute something, in a process of its own; what this machine can run must be right."""
    if options.target != platform.machine():
        say(f"CPU variants: not run, this machine is {platform.machine()}")
        return []
    ran, unable = [], []
    for file in sorted((tree / UTIL).glob("libggml-cpu-*.so")):
        loader = [tree / LIBRARIES / "ld.so"] if options.bundle_libc else []
        command = list(map(str, [*loader, tree / PROBE, "load", file]))
        try:
            probe = subprocess.run(
                command, cwd=tree / UTIL, capture_output=True, text=True, timeout=_PROBE_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            fail(f"{file.name} did not compute within {_PROBE_LIMIT:.0f} s", f"alone: {' '.join(command)}")
        states = [line.get("state") for line in map(json.loads, probe.stdout.splitlines())]
        name = file.stem.removeprefix("libggml-cpu-")
        if "ran" in states:
            ran.append(name)
        elif probe.returncode == 0 and "unsupported" in states:
            unable.append(name)
        else:
            text = (probe.stdout + probe.stderr)[-500:]
            fail(f"{file.name} does not compute rightly (status {probe.returncode}): {text}", "report it with the log")
    say(f"CPU variants that computed rightly here: {' '.join(ran)}")
    say(f"CPU variants that this machine cannot run, so not run: {' '.join(unable) or 'none'}")
    return ran


def _mend_and_check(tree: Path, options: NativeOptions) -> None:
    for file in _files(tree):
        if file.is_relative_to(tree / LIBRARIES):
            continue  # not ours: cuBLAS
        elf = Elf(file)
        elf.prefer_own_libraries()
        if Elf(file).runpath is not None or Elf(file).rpath != "$ORIGIN":
            fail(
                f"{file} would load libraries from elsewhere", "its RPATH must be $ORIGIN and there must be no RUNPATH"
            )
        # The CUDA backend is compiled by the machine's own compiler: `version` tells what it needs.
        if options.compiler == "zig" and elf.glibc > GLIBC and file.name != CUDA_BACKEND:
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
