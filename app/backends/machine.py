"""The GPUs of this machine as the kernel shows them, without any driver's library, and who may use them."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
"""PCI base classes; some of AMD's compute cards are of the second."""
_NO_GPU = ("virtio", "vgem", "vkms", "vmwgfx", "bochs", "qxl", "ast", "mgag200", "cirrus", "hyperv", "simple")
"""Drivers that draw or hand on, and compute nothing."""
_KNOWN_SLOW = ("v3d", "vc4", "panfrost", "panthor", "lima")
"""Kernel drivers of what `policy` does not take: nobody needs to be warned about it."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that could compute."""

    vendor: str
    where: str
    """Its PCI address, or its node."""
    driver: str
    """The kernel's; empty when it has none."""

    def __str__(self) -> str:
        return f"{self.vendor} GPU at {self.where}"


@dataclass(frozen=True)
class Denied:
    """A node that this user may not open."""

    path: str
    group: str
    """The group that may; empty when none is."""


@dataclass(frozen=True)
class Machine:
    """What is there."""

    gpus: tuple[Gpu, ...] = ()
    nodes: tuple[str, ...] = ()
    """/dev/nvidia*, /dev/kfd and the render nodes."""
    denied: tuple[Denied, ...] = ()


def look(root: Path = Path("/"), may_open: Callable[[Path], bool] | None = None) -> Machine:
    """Read /sys and /dev below `root`; what cannot be read is not there."""
    may_open = may_open or (lambda path: os.access(path, os.R_OK | os.W_OK))
    nodes = [*sorted((root / "dev").glob("nvidia[0-9]*")), *sorted((root / "dev").glob("nvidiactl"))]
    nodes += [*sorted((root / "dev").glob("kfd")), *sorted((root / "dev/dri").glob("renderD*"))]
    return Machine(
        (*_on_pci(root), *_on_chip(root)),
        tuple("/" + str(node.relative_to(root)) for node in nodes),
        tuple(_denied(root, node) for node in nodes if not may_open(node)),
    )


def _on_pci(root: Path) -> list[Gpu]:
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor = _VENDORS.get(_read(device / "vendor"), "")
        base = _read(device / "class")[:4]
        if vendor and (base == _DISPLAY or (base == _ACCELERATOR and vendor == "AMD")):
            found.append(Gpu(vendor, device.name, _driver(device)))
    return found


def _on_chip(root: Path) -> list[Gpu]:
    """Those beside an Arm processor: they have a render node and no PCI address."""
    found = []
    for node in sorted((root / "sys/class/drm").glob("renderD*")):
        driver = _driver(node / "device")
        on_pci = (node / "device/vendor").exists()
        if driver and not on_pci and not driver.startswith((*_NO_GPU, *_KNOWN_SLOW)):
            found.append(Gpu(driver, f"/dev/dri/{node.name}", driver))
    return found


def _denied(root: Path, node: Path) -> Denied:
    status = node.stat()
    group = str(status.st_gid) if status.st_mode & 0o060 == 0o060 and status.st_gid else ""
    with suppress(KeyError, ValueError):
        group = grp.getgrgid(int(group)).gr_name
    return Denied("/" + str(node.relative_to(root)), group)


def _driver(device: Path) -> str:
    with suppress(OSError):
        return (device / "driver").readlink().name
    return ""


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
