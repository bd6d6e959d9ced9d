"""Goal: for each backend that offers nothing the user reads what is missing, and what to do."""

from __future__ import annotations

import pytest

from app.backends.findings import Device, Findings, Library, Physical, Vulkan
from app.backends.machine import Denied, Gpu, Machine
from app.backends.reasons import absences

VULKAN = Library("libggml-vulkan.so", "loaded")
CUDA = Library("libggml-cuda.so", "loaded")
NVIDIA, AMD = Gpu("NVIDIA", "0000:01:00.0", "nvidia"), Gpu("AMD", "0000:02:00.0", "amdgpu")
LLVMPIPE = Physical(0, "llvmpipe", "cpu", "llvmpipe", "", "1.3.0", True)
RENDER = ("/dev/dri/renderD128",)


EMPTY, NO_VULKAN = Machine(), Vulkan()
NO_LIBCUDA = "libcuda.so.1: cannot open"


def why(library: Library, machine: Machine = EMPTY, vulkan: Vulkan = NO_VULKAN) -> str:
    (absent,) = absences(Findings((library,), (), vulkan), machine)
    return f"{absent.backend}: {absent.why} -> {absent.remedy}"


@pytest.mark.parametrize(
    ("vulkan", "machine", "words"),
    [
        (Vulkan("loader", "libvulkan.so.1: cannot open"), Machine(), ["loader is missing", "libvulkan1"]),
        (Vulkan("old", "the loader knows Vulkan 1.1.0"), Machine(), ["1.2 is needed", "1.1.0"]),
        (Vulkan("crashed", "was killed by SIGSEGV"), Machine(), ["broke down", "SIGSEGV", "update"]),
        (Vulkan("driver", "-9"), Machine(), ["no GPU in this machine"]),
        (Vulkan("driver", "-9"), Machine((AMD,), RENDER), ["no driver for the AMD GPU", "mesa-vulkan-drivers"]),
        (Vulkan("driver", "-9"), Machine((NVIDIA,), ("/dev/nvidia0",)), ["NVIDIA_DRIVER_CAPABILITIES=all", "icd"]),
        (Vulkan(devices=(LLVMPIPE,)), Machine((AMD,), RENDER), ["only llvmpipe for the AMD GPU", "mesa"]),
        (Vulkan(), Machine((AMD,), RENDER, (Denied(RENDER[0], "render"),)), ["may not open /dev/dri", "group render"]),
        (Vulkan(), Machine((AMD,)), ["no node in /dev for the AMD GPU", "--device /dev/dri"]),
        (Vulkan(), Machine((Gpu("AMD", "x", ""),)), ["the kernel has no driver"]),
        (
            Vulkan(devices=(Physical(0, "GT 430", "discrete", "nouveau", "", "1.0.2", False),)),
            Machine((NVIDIA,), RENDER),
            ["GT 430 (Vulkan 1.0.2) lacks"],
        ),
    ],
)
def test_vulkan(vulkan: Vulkan, machine: Machine, words: list[str]) -> None:
    told = why(VULKAN, machine, vulkan)
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize(
    ("state", "detail", "machine", "words"),
    [
        ("failed", NO_LIBCUDA, Machine(), ["no NVIDIA GPU"]),
        ("failed", NO_LIBCUDA, Machine((NVIDIA,)), ["driver is missing", "NVIDIA_DRIVER_CAPABILITIES"]),
        ("failed", "libcublas.so.13: cannot open", Machine((NVIDIA,)), ["library is missing", "<assets>/lib"]),
        ("loaded", "CUDA driver version is insufficient for CUDA runtime version", Machine((NVIDIA,)), ["too old"]),
        ("loaded", "CUDA driver version is insufficient for CUDA runtime version", Machine(), ["no NVIDIA GPU"]),
        ("loaded", "", Machine((NVIDIA,)), ["finds no device", "nvidia-smi"]),
        ("loaded", "no CUDA-capable device is detected", Machine(), ["no NVIDIA GPU"]),
        ("loaded", "", Machine((NVIDIA,), (), (Denied("/dev/nvidia0", "video"),)), ["/dev/nvidia0", "group video"]),
        ("crashed", "failed its trial, whose process was killed by SIGILL", Machine((NVIDIA,)), ["SIGILL"]),
    ],
)  # fmt: skip
def test_cuda(state: str, detail: str, machine: Machine, words: list[str]) -> None:
    told = why(Library("libggml-cuda.so", state, detail), machine)
    assert [word for word in words if word not in told] == [], told


def test_an_unknown_backend_tells_what_it_said_itself() -> None:
    assert "sycl-ls" in why(Library("libggml-sycl.so", "failed", "sycl-ls sees nothing"))


def test_a_backend_at_work_needs_no_reason() -> None:
    working = Device("CUDA0", "H100", "CUDA", "gpu")
    hot = Device("Vulkan0", "H100", "Vulkan", "gpu", trouble="cannot be opened")
    absent = absences(
        Findings((CUDA, VULKAN, Library("libggml-cpu-x64.so", "ran")), (working, hot)), Machine((NVIDIA,))
    )
    assert [(one.backend, one.why) for one in absent] == [("Vulkan", "Vulkan0 cannot be opened")]
