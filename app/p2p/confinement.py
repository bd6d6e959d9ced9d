"""What a GPU server may see of the machine's files, and what is made ready for it before it is shut in.

Its own directories and drivers to read, its caches to write, GPUs to use. Not the user's files, not the
worker's token and state, not other processes.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from app.cache.directory import cache_directory
from app.directories import make_private
from app.launch import ServerCommand
from app.p2p.landlock import Access

_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt/rocm*", "/opt/amdgpu*", "/opt/intel*",
    "/nix/store", "/gnu/store", "/run/opengl-driver*",
    "/etc/ld.so.*", "/etc/alternatives", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf",
    "/etc/vulkan", "/etc/glvnd", "/etc/OpenCL", "/etc/drirc", "/etc/nvidia*", "/etc/amd*",
    "/sys/devices", "/sys/bus", "/sys/class", "/sys/dev", "/sys/module", "/sys/kernel/mm",
    "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
)  # fmt: skip
"""Programs, libraries, drivers, and how they are set up. Root could read the debug and tracing parts of /sys."""
_PROC = tuple(
    f"/proc/{name}"
    for name in ("cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "modules", "devices",
                 "driver", "sys", "cgroups", "swaps", "iomem")
)  # fmt: skip
"""What ggml, C libraries and drivers read. Nothing of other processes; each costs the keeper a descriptor."""
_GPUS = (
    "/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/accel", "/dev/nvidia*", "/dev/nvmap", "/dev/nvgpu",
    "/dev/nvhost*", "/dev/mali*", "/dev/dma_heap",
)  # fmt: skip
"""Never a shorter pattern: /dev/nvme* are disks."""
_USERS_PATHS = (
    "LD_LIBRARY_PATH", "GGML_BACKEND_PATH", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES",
    "VK_LAYER_PATH", "VK_ADD_LAYER_PATH", "OCL_ICD_VENDORS", "ROCM_PATH",
)  # fmt: skip
"""Variables that name drivers and libraries, by colons where there are several."""
_DRIVER_CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "__GL_SHADER_DISK_CACHE_PATH": "nvidia",
    "MESA_SHADER_CACHE_DIR": "mesa",
    "AMD_COMGR_CACHE_DIR": "amd",
    "NEO_CACHE_DIR": "intel",
}
"""Where drivers keep compiled code. The server gets places of its own: drivers believe what they find there, so in
those that the user's other programs read, a server that was taken over could plant code for them."""
_OWN_CACHE = "localai/drivers"
MODPROBE_LIMIT = 30.0
"""Seconds: it may have to load a kernel module."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confinement:
    """What a server gets beside its argv and its working directory."""

    rules: tuple[tuple[str, Access], ...]
    """Later ones add to earlier ones."""
    env: Mapping[str, str]


def confine(command: ServerCommand) -> Confinement:
    """What `command` needs; makes the directories that it may write, where that is possible."""
    home = _home(command.env)
    caches = Path(command.env.get("XDG_CACHE_HOME") or home / ".cache")
    env = dict(command.env)
    writable = []
    gpus = _matching(_GPUS)
    if gpus and (home.is_dir() or caches.is_dir()):
        for variable, name in _DRIVER_CACHES.items():
            writable.append(Path(env.setdefault(variable, str(caches / _OWN_CACHE / name))))
    if (cache := cache_directory(command.argv, env)) is not None:
        writable.append(cache)
    for directory in writable:
        with suppress(OSError):  # then the server does without, or says itself what it lacks
            make_private(directory)

    readable = [*_matching(_SYSTEM), *_matching(_PROC)]
    for path in _own_places(command):
        if _is_above(path, home):
            log.warning("rpc-server may not read all of %s: your own files are below it", path)
        else:
            readable.append(str(path))
    readable += (str(home / place) for place in (".local/share/vulkan", ".config/vulkan"))
    return Confinement(
        (
            *((path, Access.READ) for path in readable),
            *((path, Access.USE) for path in ("/dev/null", *gpus)),
            *((str(path), Access.KEEP) for path in writable if not _is_above(path, home)),
        ),
        env,
    )


def make_device_nodes(env: Mapping[str, str], devices: Path = Path("/dev")) -> None:
    """Have NVIDIA's driver make what CUDA opens; under `no_new_privs` its setuid helper could not."""
    program = shutil.which("nvidia-modprobe", path=env.get("PATH"))
    if program and (devices / "nvidia0").exists() and not (devices / "nvidia-uvm").exists():
        with suppress(OSError, subprocess.SubprocessError):  # the server tells what it cannot open
            subprocess.run([program, "-u", "-c=0"], env=env, capture_output=True, timeout=MODPROBE_LIMIT, check=False)


def _own_places(command: ServerCommand) -> Iterator[Path]:
    """The server's directory, what its links lead to, and what the environment names. May hold duplicates."""
    yield command.cwd
    yield from map(Path, command.argv[:1])
    with suppress(OSError):
        yield from (entry.resolve() for entry in command.cwd.iterdir() if entry.is_symlink())
    for variable in _USERS_PATHS:
        for named in filter(None, command.env.get(variable, "").split(":")):
            path = command.cwd / named
            yield path
            if path.suffix == ".json":
                yield from _driver_of(path)
            elif variable == "GGML_BACKEND_PATH":
                yield path.parent  # what it links to lies beside it


def _driver_of(manifest: Path) -> Iterator[Path]:
    """The directory of the library that a Vulkan driver's description names by its path."""
    with suppress(OSError, ValueError, TypeError, LookupError):
        library = Path(json.loads(manifest.read_text())["ICD"]["library_path"])
        if len(library.parts) > 1:
            yield (manifest.parent / library).parent


def _matching(patterns: tuple[str, ...]) -> list[str]:
    return [path for pattern in patterns for path in glob(pattern)]  # noqa: PTH207 - absolute ones


def _is_above(path: Path, home: Path) -> bool:
    """Whether `path` holds somebody's home, or is one."""
    resolved = Path(os.path.realpath(path))
    return any(Path(os.path.realpath(below)).is_relative_to(resolved) for below in (home, _home({})))


def _home(env: Mapping[str, str]) -> Path:
    if env.get("HOME"):
        return Path(env["HOME"])
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # a user that only a number has
        return Path("/nonexistent")
