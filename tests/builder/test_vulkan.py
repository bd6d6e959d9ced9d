"""Goal: the machine's own Vulkan parts are taken only when they are new enough, and the compiler knows tensor cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import vulkan


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /usr with headers, a loader and a glslc that accepts everything."""
    for file in ("include/vulkan/vulkan_core.h", "include/spirv/unified1/spirv.hpp", "lib/x/libvulkan.so", "bin/glslc"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "include/vulkan/vulkan_core.h").write_text(f"#define VK_HEADER_VERSION {vulkan.OLDEST_HEADERS}\n")
    glslc(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(vulkan, "_DIRECTORY", tmp_path / "build")
    return tmp_path


def glslc(root: Path, does: str) -> None:
    (root / "bin/glslc").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "shaderc 2025.2-1"; exit; }}\n{does}\n'
    )
    (root / "bin/glslc").chmod(0o755)


def test_new_enough(machine: Path) -> None:
    found = vulkan._of_this_machine(machine)
    assert found is not None
    assert found.name == f"glslc 2025.2, headers 1.4.{vulkan.OLDEST_HEADERS}"
    assert found.loader is None
    assert found.library == machine / "lib/x/libvulkan.so"
    assert sorted(path.name for path in found.include.iterdir()) == ["spirv", "vk_video", "vulkan"]


def test_headers_that_are_too_old(machine: Path) -> None:
    (machine / "include/vulkan/vulkan_core.h").write_text("#define VK_HEADER_VERSION 239\n")
    assert vulkan._of_this_machine(machine) is None


def test_a_shader_compiler_without_cooperative_matrices(machine: Path) -> None:
    glslc(machine, "exit 1")
    assert vulkan._of_this_machine(machine) is None


@pytest.mark.parametrize("part", ["bin/glslc", "include/spirv/unified1/spirv.hpp", "lib/x/libvulkan.so"])
def test_a_part_that_is_missing(machine: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / part).unlink()
    monkeypatch.setenv("PATH", str(machine / "bin"))
    assert vulkan._of_this_machine(machine) is None
