"""The user's own backends: the `libggml-*.so` of a directory, checked before they run as us."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from app.backends.findings import kind
from app.directories import UnsafeDirectory, check_owner
from app.errors import ExitCode, WorkerError

LOADED = (
    "blas", "zendnn", "cann", "cuda", "hip", "metal", "sycl", "vulkan", "virtgpu", "opencl", "hexagon", "musa",
    "openvino", "cpu",
)  # fmt: skip
"""The backends that ggml looks for by name (`ggml_backend_load_all_from_path`), but `rpc`: that is the server's own."""

log = logging.getLogger(__name__)


def find(directory: str) -> dict[str, Path]:
    """Name -> file of each backend in `directory`. Raises `WorkerError` where others could have put one there."""
    given = Path(directory).expanduser()
    try:
        place = given.resolve(strict=True)
        _check([*reversed(place.parents), place])
        names = sorted(path for path in place.iterdir() if path.name.startswith("libggml-") and path.suffix == ".so")
        found = {path.name: _inside(path, place) for path in names}
        _check(list(found.values()))
    except UnsafeDirectory as problem:
        raise WorkerError(
            problem.message, "backends are code: keep them where only you or root can write", ExitCode.ASSETS
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WorkerError(
            f"cannot use the backends in {given}: {reason}", "correct --backend-dir or WORKER_BACKEND_DIR",
            ExitCode.ASSETS,
        ) from None  # fmt: skip
    backends = {name: path for name, path in found.items() if kind(name) in LOADED}
    for name in found.keys() - backends.keys():
        log.info("%s is left alone: ggml loads no backend of that name", place / name)
    if not backends:
        raise WorkerError(
            f"no backend in {place}",
            f"they are named libggml-NAME.so, NAME one of {', '.join(LOADED)}",
            ExitCode.ASSETS,
        )
    return backends


def _inside(path: Path, place: Path) -> Path:
    target = path.resolve(strict=True)
    if not target.is_relative_to(place):
        raise UnsafeDirectory(f"{path} leads out of its directory, to {target}", "")
    if not target.is_file():
        raise UnsafeDirectory(f"{path} is not a regular file", "")
    _check([between for between in reversed(target.parents) if between.is_relative_to(place)])
    return target


def _check(paths: list[Path]) -> None:
    for path in paths:
        check_owner(os.lstat(path), path)
