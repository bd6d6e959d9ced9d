"""A Vulkan driver that needs no GPU, for the tests: Mesa's, out of the distribution's packages and into build/.

Nothing is installed and root is not needed. apt checks what it fetches; where it
cannot be had the tests that want it are skipped and say so.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

from builder import debian
from builder.paths import BUILD
from builder.steps import digest, once, say

PACKAGE = "mesa-vulkan-drivers"
_DIRECTORY = BUILD / "software-gpu"
_ICD = "lvp_icd*.json"
"""How Mesa names the description of its software driver for the loader."""
_LIMIT = 300.0
"""Seconds for apt to read its indexes, and for the packages to come."""


def prepare() -> dict[str, str]:
    """The environment in which Vulkan finds the driver; {} where it cannot be had."""
    installed = next(Path("/usr/share/vulkan/icd.d").glob(_ICD), None)
    if installed is not None:
        return {"VK_DRIVER_FILES": str(installed), "VK_ICD_FILENAMES": str(installed)}
    driver = _DIRECTORY / "driver.json"
    try:
        once("software-gpu", digest(files=[Path(__file__)]), [driver], lambda: _unpack(driver))
    except (debian.Unavailable, OSError, subprocess.SubprocessError) as error:
        say(f"without a software GPU, its tests will be skipped: {error}")
        return {}
    libraries = _DIRECTORY / f"usr/lib/{platform.machine()}-linux-gnu"
    return {
        "VK_DRIVER_FILES": str(driver),
        "VK_ICD_FILENAMES": str(driver),  # the name that loaders before 1.3.207 know
        "LD_LIBRARY_PATH": str(libraries),
    }


def _unpack(driver: Path) -> None:
    if shutil.which("apt-get") is None:
        raise debian.Unavailable("this machine has no apt")
    say(f"fetching {PACKAGE} for the tests ...")
    shutil.rmtree(_DIRECTORY, ignore_errors=True)
    for directory in ("lists/partial", "archives/partial"):
        (_DIRECTORY / "apt" / directory).mkdir(parents=True)
    # What the machine has already is not fetched; what it lacks comes with the driver.
    private = [f"Dir::State::Lists={_DIRECTORY}/apt/lists", f"Dir::Cache::Archives={_DIRECTORY}/apt/archives"]
    private += [f"Dir::Cache={_DIRECTORY}/apt", "Debug::NoLocking=true", "APT::Sandbox::User=root"]
    apt = ["apt-get", "--quiet", *(word for setting in private for word in ("-o", setting))]
    for command in (["update"], ["install", "--download-only", "--yes", "--no-install-recommends", PACKAGE]):
        subprocess.run([*apt, *command], capture_output=True, check=True, timeout=_LIMIT)
    for package in (_DIRECTORY / "apt/archives").glob("*.deb"):
        debian.unpack_deb(package, _DIRECTORY)
    shutil.rmtree(_DIRECTORY / "apt")
    for loader in _DIRECTORY.rglob("libvulkan.so*"):
        loader.unlink()  # where the machine has none, the one that we carry is to be tested
    (manifest,) = _DIRECTORY.glob(f"usr/share/vulkan/icd.d/{_ICD}")
    text = json.loads(manifest.read_text())
    (library,) = _DIRECTORY.rglob(Path(text["ICD"]["library_path"]).name)
    text["ICD"]["library_path"] = str(library)
    driver.write_text(json.dumps(text))
