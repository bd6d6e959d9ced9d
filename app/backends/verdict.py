"""Keeps what was found out about this machine, so that later starts read one small file in place of probing."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from app import __version__
from app.backends import findings
from app.backends.findings import Findings
from app.directories import check_owner, open_private, opened
from app.errors import WorkerError

MAX_SIZE = 1 << 18
"""Bytes; a verdict has some thousands."""
_VARIABLES = (
    "GGML_", "VK_", "CUDA_", "HIP_", "HSA_", "ROCR_", "NVIDIA_", "__GL", "DRI_PRIME", "MESA_", "RADV_", "ZE_", "SYCL_",
    "ONEAPI_", "OCL_", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE", "XDG_CONFIG", "XDG_DATA", "HOME",
    "LOCALAI_SKIP_LIBRARY_PATH",
)  # fmt: skip
"""What these begin with makes a driver, or our choice, another one."""
_CPU = "/sys/devices/system/cpu/modalias"
"""Maker, model and features of the processor; /proc/cpuinfo stands in. Opening that may take 10 ms (Linux < 5.18)."""
_LIBRARY_CACHE = "/etc/ld.so.cache"
"""Changes whenever a library is installed: the loader or driver that was missing may be there now."""
_ICD_DIRECTORIES = (
    "/etc/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/usr/local/etc/vulkan/icd.d",
)
"""Where Vulkan's loader looks for drivers, besides the user's XDG directories."""
_CHANGING = ("cpu mhz", "bogomips")
MOST = 8
"""Verdicts kept of one payload: for a service, a shell, and what was tried in it."""
_FIRST_BLOCK = 4096

log = logging.getLogger(__name__)


def name_of(digest: str, environ: Mapping[str, str], own: Iterable[Path]) -> str:
    """The file name of the verdict on the payload `digest` here and now; `own` are the user's own libraries."""
    facts = hashlib.sha256()
    for fact in _facts(environ, own):
        facts.update(fact.encode(errors="surrogateescape") + b"\0")
    return f"{digest}.verdict-{facts.hexdigest()[:16]}"


def read(base: Path, name: str) -> Findings | None:
    """The kept verdict; None when there is none that can be trusted."""
    try:
        with opened(open_private(base, create=False)) as base_fd:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=base_fd)
        with opened(fd):
            status = os.fstat(fd)
            check_owner(status, base / name)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIZE:
                return None
            return findings.from_json(os.read(fd, MAX_SIZE))
    except (OSError, WorkerError, ValueError, TypeError, RecursionError):
        return None


def keep(base: Path, name: str, found: Findings) -> None:
    """Write it for later starts; where that cannot be, they probe anew."""
    temporary = f"{name.partition('.')[0]}.tmp-{secrets.token_hex(4)}"  # `assets prune` knows this name
    try:
        with opened(open_private(base, create=False)) as base_fd:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=base_fd), "w") as file:
                file.write(findings.to_json(found))
            os.rename(temporary, name, src_dir_fd=base_fd, dst_dir_fd=base_fd)
            of_this = [one for one in os.listdir(base_fd) if one.startswith(name.rpartition("-")[0])]
            of_this.sort(key=lambda one: os.stat(one, dir_fd=base_fd).st_mtime_ns)
            for old in of_this[:-MOST]:
                os.unlink(old, dir_fd=base_fd)
    except (OSError, WorkerError) as problem:
        log.debug("the verdict on this machine cannot be kept: %s", problem)


def forget(base: Path, name: str) -> None:
    """The next start probes anew."""
    with suppress(OSError, WorkerError), opened(open_private(base, create=False)) as base_fd:
        os.unlink(name, dir_fd=base_fd)


def _facts(environ: Mapping[str, str], own: Iterable[Path]) -> Iterator[str]:
    """Everything that may change what a probe finds."""
    yield __version__
    yield _processor()
    yield os.uname().release
    yield f"{os.geteuid()} {os.getegid()} {sorted(os.getgroups())}"
    yield _read("/proc/driver/nvidia/version")
    yield from _nodes("/dev", ("nvidia", "kfd"))
    yield from _nodes("/dev/dri", ("",))
    for directory in _ICD_DIRECTORIES:
        yield from _nodes(directory, ("",))
    yield _identity(_LIBRARY_CACHE)
    yield from (f"{name}={value}" for name, value in sorted(environ.items()) if name.startswith(_VARIABLES))
    yield from sorted(_identity(path) for path in own)


def _processor() -> str:
    if alias := _read(_CPU):
        return alias
    block = _read("/proc/cpuinfo").partition("\n\n")[0]
    return "\n".join(line for line in block.splitlines() if not line.lower().startswith(_CHANGING))


def _nodes(directory: str, beginnings: tuple[str, ...]) -> Iterator[str]:
    """Device nodes or files with what tells them from others of that name."""
    with suppress(OSError), os.scandir(directory) as entries:
        yield from sorted(_identity(entry.path) for entry in entries if entry.name.startswith(beginnings))


def _identity(path: str | Path) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - hundreds of these stand between a start and its server
    except OSError:
        return f"{path} missing"
    # A node's time changes with each use.
    changed = 0 if stat.S_ISCHR(status.st_mode) else status.st_mtime_ns
    return f"{path} {status.st_mode} {status.st_uid} {status.st_gid} {status.st_size} {status.st_rdev} {changed}"


def _read(path: str) -> str:
    """The beginning of a file of the kernel's; empty when there is none."""
    try:
        with opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return os.read(fd, _FIRST_BLOCK).decode(errors="replace")
    except OSError:
        return ""
