"""Goal: what is kept of a machine comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import pytest

from app.backends.findings import (
    Absence,
    Device,
    Findings,
    Library,
    Physical,
    Vulkan,
    from_json,
    kind,
    to_json,
)

FOUND = Findings(
    (Library("libggml-cpu-x64.so", "ran"), Library("libggml-vulkan.so", "crashed", "failed")),
    (Device("CPU", "Some CPU", "CPU", "cpu", 2, 1), Device("Vulkan0", "A100", "Vulkan", "gpu", trouble="is hot")),
    Vulkan("", "", (Physical(0, "A100", "discrete", "NVIDIA", "580", "1.4.0", True),), True),
    (Absence("CUDA", "no driver", "install it"),),
    ("NVIDIA GPU at 0000:01:00.0",),
)


def test_findings_come_back_as_they_were() -> None:
    assert from_json(to_json(FOUND)) == FOUND


@pytest.mark.parametrize("text", ["", "[]", "{}", "[[[1, 2, 3, 4]], [], [1, 2, [], 4], [], []]", to_json(FOUND)[:-9]])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_json(text)


def test_a_gpu_in_trouble_is_none() -> None:
    assert not FOUND.has_gpu
    assert Findings(devices=(Device("CUDA0", "A100", "CUDA", "gpu"),)).has_gpu
    assert [library.name for library in FOUND.left_out] == ["libggml-vulkan.so"]


def test_the_backend_of_a_file_name() -> None:
    assert [kind(name) for name in ("libggml-cpu-armv8.2_1.so", "libggml-cuda.so", "/opt/x/libggml-hip.so")] == [
        "cpu",
        "cuda",
        "hip",
    ]
