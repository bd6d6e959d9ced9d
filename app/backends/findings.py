"""What a look at this machine found: libraries, devices, drivers, and why a backend offers nothing. Plain data.

Named tuples: to define one costs a start 0.1 ms where a frozen dataclass takes 0.6.
"""

from __future__ import annotations

import json
from typing import NamedTuple

CRASHED, HUNG, WRONG = "crashed", "hung", "wrong"
"""States of a library that must not be beside the server."""
HARMFUL = (CRASHED, HUNG, WRONG)

_TYPES = {"total": int, "free": int, "number": int, "suitable": bool, "carried_loader": bool, "devices": tuple}
"""Of the fields that are no text."""


class Library(NamedTuple):
    """One backend library."""

    name: str
    """Its file name; an absolute path when GGML_BACKEND_PATH names it."""
    state: str
    """`ran`, `loaded`; `fits`, `unsupported` (a CPU variant that was not the best); `failed`, `wrong`, `crashed`."""
    detail: str = ""


class Device(NamedTuple):
    """One device, as the server would name it."""

    name: str
    description: str
    backend: str
    type: str
    """`cpu`, `gpu`, `igpu`, `accel`, `other`; `hidden` is a software device that ggml leaves out by itself."""
    total: int = 0
    """Bytes; 0 when unknown."""
    free: int = 0
    id: str = ""
    """Where it is on the PCI bus; empty when that is unknown."""
    driver: str = ""
    trouble: str = ""
    """Why it cannot be used, to be read after its name; empty when it computed as it should."""

    @property
    def is_gpu(self) -> bool:
        """Whether the server takes it before the CPU."""
        return self.type not in ("cpu", "accel", "hidden")


class Physical(NamedTuple):
    """A device as Vulkan lists it."""

    number: int
    """In the order of Vulkan's own list."""
    name: str
    type: str
    """`discrete`, `integrated`, `virtual`, `cpu` or `other`."""
    driver: str
    info: str
    api: str
    """The newest Vulkan that it knows, such as `1.3.230`."""
    suitable: bool
    """Whether shaders can use 16-bit numbers in memory, without which ggml does not take it."""


class Vulkan(NamedTuple):
    """What Vulkan itself says."""

    problem: str = ""
    """`loader`: no libvulkan.so.1; `old`; `driver`: none installed; `instance`; `crashed`; `hung`; empty: well."""
    detail: str = ""
    devices: tuple[Physical, ...] = ()
    carried_loader: bool = False
    """Whether it took the loader that this file carries."""


class Absence(NamedTuple):
    """A backend inside the file that offers no device."""

    backend: str
    why: str
    remedy: str = ""


class Findings(NamedTuple):
    """All of it."""

    libraries: tuple[Library, ...] = ()
    devices: tuple[Device, ...] = ()
    vulkan: Vulkan = Vulkan()
    absent: tuple[Absence, ...] = ()
    gpus: tuple[str, ...] = ()
    """Every GPU that is seen without any driver's help, in words."""

    @property
    def has_gpu(self) -> bool:
        """Whether a device computes that is not the CPU."""
        return any(device.is_gpu and not device.trouble for device in self.devices)

    @property
    def passing(self) -> bool:
        """Whether it may look otherwise the next time: a busy or hot GPU, a machine under load."""
        hung = HUNG in (self.vulkan.problem, *(library.state for library in self.libraries))
        return hung or any(device.trouble for device in self.devices)

    @property
    def left_out(self) -> tuple[Library, ...]:
        """The libraries that must not be loaded."""
        return tuple(library for library in self.libraries if library.state in HARMFUL)


def kind(library: str) -> str:
    """The backend that a file name stands for: `libggml-cpu-haswell.so` -> `cpu`."""
    return library.rpartition("/")[2].removeprefix("libggml-").removesuffix(".so").partition("-")[0]


def to_json(findings: Findings) -> str:
    """The form in which a verdict is kept: lists in the order of the fields."""
    return json.dumps(findings)


def from_json(text: str | bytes) -> Findings:
    """The inverse of `to_json`. Raises `ValueError` or `TypeError` on anything else."""
    libraries, devices, (problem, detail, listed, carried_loader), absent, gpus = json.loads(text)
    return checked(
        Findings(
            tuple(Library(*one) for one in libraries),
            tuple(Device(*one) for one in devices),
            Vulkan(problem, detail, tuple(Physical(*one) for one in listed), carried_loader),
            tuple(Absence(*one) for one in absent),
            tuple(map(str, gpus)),
        )
    )


def checked(findings: Findings) -> Findings:
    """`findings`, which come from outside. Raises `TypeError` unless every field is of its type."""
    vulkan = findings.vulkan
    all_of_it: tuple[Library | Device | Vulkan | Physical | Absence, ...]
    all_of_it = (*findings.libraries, *findings.devices, vulkan, *vulkan.devices, *findings.absent)
    for made in all_of_it:
        for name, value in made._asdict().items():
            wanted = _TYPES.get(name, str)
            if type(value) is not wanted:
                raise TypeError(f"{name}: {value!r} is no {wanted.__name__}")
    return findings
