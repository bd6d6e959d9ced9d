"""What the Vulkan backend is compiled with: headers, the loader's source, and a shader compiler.

The shader compiler decides the speed: one that does not know cooperative matrices
leaves the tensor cores of a GPU idle. So a pinned one comes with the pinned headers,
and is started through its own C library, because it needs a newer one than many
machines have. Where those archives cannot be had the machine's own will do, when
they are new enough.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from builder import debian
from builder.debian import Unavailable
from builder.paths import BUILD, DOWNLOADS
from builder.steps import digest, once, run, safe_members, say

OLDEST_HEADERS = 309
"""VK_HEADER_VERSION that ggml-vulkan is known to compile with (1.4.309); 239 lacks vk::LayerSettingTypeEXT."""
_DIRECTORY = BUILD / "vulkan"
_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
_COOPERATIVE_MATRIX = """\
#version 460
#extension GL_KHR_cooperative_matrix : require
void main() {}
"""
_HEADERS = ("vulkan", "vk_video", "spirv")


@dataclass(frozen=True)
class VulkanSdk:
    """Where the parts lie."""

    include: Path
    """Holds vulkan/, vk_video/ and spirv/."""
    glslc: Path
    loader: Path | None
    """The loader's source; without it none is carried, and `library` is linked against."""
    library: Path | None
    name: str
    """What it is, for `version --json`."""

    @property
    def cmake_options(self) -> list[str]:
        """What native/vulkan.cmake asks for."""
        return [
            f"-DWORKER_VULKAN_INCLUDE={self.include}",
            f"-DWORKER_VULKAN_LOADER={self.loader or ''}",
            f"-DWORKER_VULKAN_LIBRARY={self.library or ''}",
            f"-DWORKER_GLSLC={self.glslc}",
        ]


def prepare(offline: Path | None, mirror: str | None) -> VulkanSdk:
    """The pinned parts, else the machine's own. Raises `Unavailable`."""
    try:
        return _pinned(offline, mirror)
    except Unavailable as error:
        own = _of_this_machine()
        if own is None:
            raise
        say(f"{error}; Vulkan is built with this machine's own: {own.name}")
        return own


def _pinned(offline: Path | None, mirror: str | None) -> VulkanSdk:
    archives = offline or DOWNLOADS
    debian.fetch(archives, mirror, offline=offline is not None)
    key = digest([archive.sha256 for archive in debian.pinned()], files=[Path(__file__), Path(debian.__file__)])
    once("vulkan-sdk", key, [_DIRECTORY / "glslc"], lambda: _unpack(archives))
    name = f"{_version(_DIRECTORY / 'glslc')}, headers 1.4.{_header_version(_DIRECTORY / 'include')}"
    return VulkanSdk(_DIRECTORY / "include", _DIRECTORY / "glslc", _DIRECTORY / "loader/loader", None, name)


def _unpack(archives: Path) -> None:
    shutil.rmtree(_DIRECTORY, ignore_errors=True)
    system = _DIRECTORY / "system"
    for archive in debian.pinned():
        file = archives / archive.name
        if file.suffix == ".deb":
            debian.unpack_deb(file, system)
        else:
            with safe_members(tarfile.open(file)) as tar:
                tar.extractall(_DIRECTORY / archive.name.partition("_")[0])  # noqa: S202 - safe_members
    for name, source in (("loader", "vulkan-loader"), ("spirv", "spirv-headers")):
        (unpacked,) = (_DIRECTORY / source).iterdir()
        unpacked.rename(_DIRECTORY / name)
    # Debian leaves out what the loader's own script writes.
    (_DIRECTORY / "loader/loader/generated").mkdir()
    script = ["scripts/generate_source.py", "vulkan-headers/registry"]
    run("writing the Vulkan loader's tables", [sys.executable, *script], cwd=_DIRECTORY / "loader")
    shutil.copytree(_DIRECTORY / "loader/vulkan-headers/include", _DIRECTORY / "include")
    shutil.copytree(_DIRECTORY / "spirv/include/spirv", _DIRECTORY / "include/spirv")
    libraries = [str(path) for path in (*system.glob("usr/*-linux-gnu/lib"), *system.glob("usr/lib/*-linux-gnu"))]
    (loader,) = system.glob(f"usr/*-linux-gnu/lib/{_LOADERS[platform.machine()]}")
    glslc = _DIRECTORY / "glslc"
    glslc.write_text(
        f"#!/bin/sh\nexec '{loader}' --library-path '{':'.join(libraries)}' '{system / 'usr/bin/glslc'}' \"$@\"\n"
    )
    glslc.chmod(0o755)


def _of_this_machine(root: Path = Path("/usr")) -> VulkanSdk | None:
    """The distribution's headers, loader and glslc, when they are new enough."""
    include, glslc = root / "include", shutil.which("glslc")
    library = next(iter(sorted(root.glob("lib*/**/libvulkan.so"))), None)
    if glslc is None or library is None or not (include / "spirv/unified1/spirv.hpp").exists():
        return None
    if _header_version(include) < OLDEST_HEADERS or not _knows_cooperative_matrices(glslc):
        return None
    # Only these three: the compiler brings its own C headers.
    own = _DIRECTORY / "own"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for name in _HEADERS:
        (own / name).symlink_to(include / name)
    name = f"{_version(Path(glslc))}, headers 1.4.{_header_version(include)}"
    return VulkanSdk(own, Path(glslc), None, library, name)


def _header_version(include: Path) -> int:
    core = include / "vulkan/vulkan_core.h"
    found = re.search(r"#define VK_HEADER_VERSION (\d+)", core.read_text()) if core.exists() else None
    return int(found[1]) if found else 0


def _knows_cooperative_matrices(glslc: str) -> bool:
    command = [glslc, "-fshader-stage=compute", "--target-env=vulkan1.3", "-o", "/dev/null", "-"]
    return subprocess.run(command, input=_COOPERATIVE_MATRIX.encode(), capture_output=True, check=False).returncode == 0


def _version(glslc: Path) -> str:
    told = subprocess.run([glslc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"shaderc v?(\d[\d.]*)", told)
    return f"glslc {found[1]}" if found else "glslc of unknown version"
