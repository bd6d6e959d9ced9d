"""The build's own virtual environment, from hash-locked requirement files."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
import venv
from functools import partial
from pathlib import Path

from builder.paths import PYTHON, REQUIREMENTS, VENV
from builder.steps import digest, fail, once, run

LOCKS = {name: REQUIREMENTS / f"{name}.txt" for name in ("build", "app", "test", "source", "cuda", "fuzz", "openssl")}

_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def check_python() -> None:
    """End the build at once where this Python cannot make it."""
    if importlib.util.find_spec("ensurepip") is None:
        fail("this Python cannot make virtual environments", "install the package python3-venv of the distribution")
    if not _has_shared_library():
        fail(
            f"this Python ({sys.executable}) has no shared libpython, which the one file carries",
            "use a Python built with --enable-shared "
            "(the distribution's, or PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install ...)",
        )


def prepare(offline: Path | None, *, tests: bool, fuzz: bool = False) -> None:
    """Make the virtual environment, or leave it when the lock files have not changed."""
    key = digest(sys.version, sys.base_prefix, files=[LOCKS["build"], LOCKS["app"]])
    once("venv", key, [PYTHON], lambda: _create(offline))
    for name in [*(["test"] if tests else []), *(["fuzz"] if fuzz else [])]:
        locked = digest(key, files=[LOCKS[name]])
        once(f"venv-{name}", locked, [_mark(name)], partial(_install, [name], offline))


def fetch(target: Path) -> None:
    """Fill `target` with every archive that an offline build needs."""
    for name in ("build", "app", "test", "fuzz"):
        download(name, target)
    fetch_source(target)


def download(name: str, target: Path, *flags: str) -> None:
    """Fetch the archives of one lock file into `target`; `flags` are more of pip's."""
    target.mkdir(parents=True, exist_ok=True)
    command = [PYTHON, *_PIP, "download", "--quiet", "--no-deps", "--require-hashes"]
    run(f"fetching for {name}", [*command, *flags, "--dest", target, "--requirement", LOCKS[name]], hint=_index_hint)


def fetch_source(target: Path) -> None:
    """Fetch the source distribution that holds llama.cpp.

    pip runs its build backend to learn its name, so that is locked and installed too.
    """
    run(
        "fetching the llama.cpp source",
        [PYTHON, *_PIP, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        + ["--require-hashes", "--dest", target, "--requirement", LOCKS["source"]],
        env={"PATH": f"{VENV / 'bin'}:/usr/bin:/bin"},
        hint=_index_hint,
    )


def _create(offline: Path | None) -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, with_pip=True)
    _install(["build", "app"], offline)


def _install(names: list[str], offline: Path | None) -> None:
    source = ["--no-index", "--find-links", offline] if offline else ["--retries", "1", "--timeout", "20"]
    for name in names:
        run(
            f"installing for {name}",
            [PYTHON, *_PIP, "install", "--quiet", "--require-hashes", *source, "--requirement", LOCKS[name]],
            hint=_offline_hint if offline else _index_hint,
        )
        _mark(name).touch()


def _mark(name: str) -> Path:
    """Goes with the environment into which it was installed."""
    return VENV / f"{name}.installed"


def _index_hint(log: str) -> str:
    if "No matching distribution" in log or "Connection" in log or "resolution" in log:
        return (
            "is the package index within reach? on a machine with it: python3 build.py fetch DIR; "
            "then here: python3 build.py --offline DIR"
        )
    return "see the log"


def _offline_hint(log: str) -> str:  # noqa: ARG001 - shaped like _index_hint
    return (
        "fill the directory with `python3 build.py fetch DIR` "
        f"on a machine with Python {sys.version_info[0]}.{sys.version_info[1]} like this one"
    )


def _has_shared_library() -> bool:
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return True
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    return any(Path(directory or "/", name).exists() for directory in (sysconfig.get_config_var("LIBDIR"), "/usr/lib"))
