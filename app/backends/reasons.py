"""Why a backend inside the file offers nothing, and what would help. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from app.backends.findings import CRASHED, HARMFUL, HUNG, Absence, Findings, Library, kind
from app.backends.machine import Machine

BACKENDS = {"vulkan": "Vulkan", "cuda": "CUDA", "hip": "ROCm", "sycl": "SYCL", "musa": "MUSA", "opencl": "OpenCL"}
"""The word in a library's name -> what its devices' backend calls itself."""

_CONTAINER = "in a container set NVIDIA_DRIVER_CAPABILITIES=all and NVIDIA_VISIBLE_DEVICES=all"
_DRIVERS = {
    "NVIDIA": f"install NVIDIA's driver with its Vulkan part (nvidia_icd.json, libGLX_nvidia); {_CONTAINER}",
    "AMD": "install Mesa's Vulkan drivers (mesa-vulkan-drivers)",
    "Intel": "install Mesa's Vulkan drivers (mesa-vulkan-drivers)",
}
_LOADER = "install Vulkan's loader (libvulkan1, vulkan-loader or vulkan-icd-loader)"


def absences(findings: Findings, machine: Machine) -> tuple[Absence, ...]:
    """One for each GPU backend whose library is there and which offers no device that works."""
    at_work = {device.backend for device in findings.devices if device.is_gpu and not device.trouble}
    return tuple(
        Absence(_backend(library), *_why(library, findings, machine))
        for library in findings.libraries
        if kind(library.name) not in ("cpu", "rpc", "blas") and _backend(library) not in at_work
    )


def _backend(library: Library) -> str:
    """What its devices' backend calls itself, as far as we know."""
    word = kind(library.name)
    return BACKENDS.get(word, word)


def _why(library: Library, findings: Findings, machine: Machine) -> tuple[str, str]:
    """The reason and its remedy."""
    if library.state in HARMFUL:
        return f"{library.name} {library.detail}", "update the GPU's driver"
    broken = [device for device in findings.devices if device.backend == _backend(library) and device.trouble]
    if broken:
        return "; ".join(f"{one.name} {one.trouble}" for one in broken), "update the GPU's driver; is it in use?"
    if kind(library.name) == "vulkan" and findings.vulkan.problem in ("loader", "old", CRASHED, HUNG):
        return _vulkan_itself(findings)
    wanted = ("/dev/nvidia",) if kind(library.name) == "cuda" else ("/dev/",)
    denied = [one for one in machine.denied if one.path.startswith(wanted)]
    if denied:
        groups = list(dict.fromkeys(one.group for one in denied if one.group))
        remedy = f"add the user to the group {' and '.join(groups)}" if groups else "see the modes of these nodes"
        return f"this user may not open {_listed(one.path for one in denied)}", remedy
    if kind(library.name) == "cuda":
        return _no_cuda(library, machine)
    if kind(library.name) == "vulkan":
        return _no_vulkan(findings, machine)
    return library.detail or "it found no device", "its maker's documentation tells what it needs"


def _vulkan_itself(findings: Findings) -> tuple[str, str]:
    problem, detail = findings.vulkan.problem, findings.vulkan.detail
    if problem == "loader":
        return f"Vulkan's loader is missing ({detail})", _LOADER
    if problem == "old":
        return f"Vulkan 1.2 is needed, {detail}", f"a newer one is wanted: {_LOADER}"
    return f"a Vulkan driver broke down: the process that asked it {detail}", "update the GPU's driver"


def _no_vulkan(findings: Findings, machine: Machine) -> tuple[str, str]:
    old = [one for one in findings.vulkan.devices if one.type != "cpu" and not one.suitable]
    if old:
        listed = _listed(f"{one.name} (Vulkan {one.api})" for one in old)
        return f"{listed} lacks 16-bit storage or Vulkan 1.2", "update its driver; an old GPU may never do"
    if not machine.gpus:
        return "no GPU in this machine", ""
    hidden = [gpu for gpu in machine.gpus if not gpu.driver]
    vendors = list(dict.fromkeys(gpu.vendor for gpu in machine.gpus))
    if not machine.nodes and len(hidden) < len(machine.gpus):
        return f"no node in /dev for the {_listed(map(str, machine.gpus))}", (
            "give the container its devices: --device /dev/dri, or --gpus all; under systemd: no PrivateDevices"
        )
    if hidden and len(hidden) == len(machine.gpus):
        return f"the kernel has no driver for the {_listed(map(str, machine.gpus))}", "install the GPU's driver"
    software = [one.name for one in findings.vulkan.devices]
    seen = f"only {_listed(software)}" if software else "no driver"
    remedies = [_DRIVERS[vendor] for vendor in vendors if vendor in _DRIVERS]
    remedy = "; ".join(dict.fromkeys(remedies)) or "install the Vulkan driver of this GPU"
    return f"Vulkan finds {seen} for the {_listed(map(str, machine.gpus))}", remedy


def _no_cuda(library: Library, machine: Machine) -> tuple[str, str]:
    if "libcuda.so" in library.detail:
        if not any(gpu.vendor == "NVIDIA" for gpu in machine.gpus):
            return "no NVIDIA GPU in this machine, and no driver", ""
        return "NVIDIA's driver is missing (libcuda.so.1)", f"install it; {_CONTAINER}"
    if library.state == "failed":
        return (
            f"a library is missing ({library.detail})",
            "put it into <assets>/lib, or install CUDA's runtime libraries",
        )
    if not any(gpu.vendor == "NVIDIA" for gpu in machine.gpus):
        return "no NVIDIA GPU in this machine", ""
    if "insufficient" in library.detail:  # what the runtime that is linked in says of a missing one too
        return f"NVIDIA's driver is missing or too old ({library.detail})", f"install or update it; {_CONTAINER}"
    return library.detail or "CUDA finds no device", f"does nvidia-smi list it? {_CONTAINER}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
