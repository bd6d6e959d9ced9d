"""Findings and wishes -> what the server is started with. No I/O.

What `slow` knows, and who measured it:

- `V3D`, the GPU of a Raspberry Pi 4 and 5: on a Pi 5 a token takes ten times as long as on Mesa's
  *software* driver there, and that one is slower than the CPU backend (b4rtaz/distributed-llama#259);
  ggml's shaders hang or abort on it (ggml-org/llama.cpp#5237, #9801).
- `panvk`, Mesa's driver for Arm's Mali: on an RK3588 the CPU alone reads a prompt 10 times and
  generates 4 times as fast (ggml-org/llama.cpp#22682).
- `llvmpipe`, `SwiftShader` and every device that says it is a CPU: software, which computes on the
  same cores with none of the CPU backend's kernels; ggml hides these itself (ggml-org/llama.cpp#14099).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.backends.findings import Device, Findings, Physical
from app.errors import WorkerError, usage_error

_SOFTWARE = "a software driver, slower than the CPU backend"
_SLOW = {
    "v3d": "a Raspberry Pi's GPU, slower than its CPU",
    "panvk": "a Mali GPU under Mesa's driver, slower than its CPU",
    "llvmpipe": _SOFTWARE,
    "swiftshader": _SOFTWARE,
}
"""A word of the driver's or the device's name, in lower case -> why it is not taken unasked."""


class Wishes(NamedTuple):
    """What the user wants."""

    devices: tuple[str, ...] = ()
    """By name; empty: whatever is best."""
    visible: str | None = None
    """The user's own GGML_VK_VISIBLE_DEVICES: what it names is taken, slow or not."""
    require_gpu: bool = False
    insist: bool = False
    """Name a GPU that is served: a server that cannot reach it ends, in place of serving the CPU without a word."""


class Skipped(NamedTuple):
    """A device that is there and is not served."""

    device: Device
    why: str


class Plan(NamedTuple):
    """What the server is started with."""

    served: tuple[Device, ...] = ()
    """Empty when nothing is known."""
    devices: tuple[str, ...] = ()
    """For the server's --device; empty where it chooses the same by itself."""
    visible: str | None = None
    """For GGML_VK_VISIBLE_DEVICES; None leaves it as it is."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether a GPU is served."""
        return any(device.is_gpu for device in self.served)


def plan(findings: Findings, wishes: Wishes) -> Plan:
    """Raises `WorkerError` for a device that is not there or not usable, and for a GPU that is required and missing."""
    skipped = _skipped(findings, wishes)
    if wishes.devices:
        found = _asked(findings, wishes, skipped)
    else:
        passed_over = [one.device for one in skipped]
        good = tuple(device for device in findings.devices if device.is_gpu and device not in passed_over)
        served = good or tuple(device for device in findings.devices if device.type == "cpu")[:1]
        named = (bool(good) and wishes.insist) or any(device.is_gpu for device in passed_over)
        found = Plan(served, tuple(device.name for device in served) if named else (), None, skipped)
    if not found.served:
        raise WorkerError(
            "no backend of this file computes on this machine: "
            + "; ".join(f"{library.name} {library.detail or library.state}" for library in findings.libraries),
            "is this file for another processor? `worker version` tells what it was built for",
        )
    if wishes.require_gpu and not found.gpu:
        raise no_gpu(findings, skipped)
    return found


def slow(device: Physical) -> str:
    """Why `device` is known to be slower than the CPU; empty when it is not."""
    words = f"{device.driver} {device.name}".lower()
    known = next((why for word, why in _SLOW.items() if word in words), "")
    return known or (_SOFTWARE if device.type == "cpu" else "")


def no_gpu(findings: Findings, skipped: Sequence[Skipped]) -> WorkerError:
    """Why there is none, a line for each backend, and the remedies."""
    lines = [f"{absent.backend}: {absent.why}" for absent in findings.absent]
    lines += [f"{one.device.name}, {one.device.description}: {one.why}" for one in skipped]
    lines = lines or ["this file carries no backend for a GPU"]
    remedies = list(dict.fromkeys(absent.remedy for absent in findings.absent if absent.remedy))
    return WorkerError(
        "\n  ".join(["no GPU can be served, and one is required", *lines]),
        "; ".join([*remedies, "without --require-gpu the CPU is served"]),
    )


def hidden(findings: Findings, wishes: Wishes) -> tuple[Device, ...]:
    """The software devices that ggml leaves out, under the names they have once they are asked for."""
    if wishes.visible is not None or findings.vulkan.problem:
        return ()
    shown = len(_shown(findings))
    software = [one for one in findings.vulkan.devices if one.type == "cpu"]
    return tuple(
        Device(f"Vulkan{shown + number}", one.name, "Vulkan", "hidden", driver=driver_of(one))
        for number, one in enumerate(software)
    )


def driver_of(device: Physical) -> str:
    """Its driver in words."""
    return f"{device.driver} {device.info}".strip()


def physical(device: Device, findings: Findings) -> Physical | None:
    """What Vulkan says of `device`; None for another backend's."""
    if device.backend != "Vulkan":
        return None
    return next((one for one in findings.vulkan.devices if one.name == device.description), None)


def _shown(findings: Findings) -> list[Physical]:
    """The devices that ggml takes by itself, in its order: Vulkan0, Vulkan1 ..."""
    left = list(findings.vulkan.devices)
    shown = []
    for device in findings.devices:
        same = [one for one in left if device.backend == "Vulkan" and one.name == device.description]
        if same:
            shown.append(same[0])
            left.remove(same[0])
    return shown


def _skipped(findings: Findings, wishes: Wishes) -> tuple[Skipped, ...]:
    """What is not taken unless it is asked for, and why."""
    skipped = []
    for device in findings.devices:
        of_vulkan = physical(device, findings)
        twin = _twin(device, findings) if of_vulkan is not None else None
        if device.is_gpu and device.trouble:
            skipped.append(Skipped(device, f"it {device.trouble}"))
        elif twin is not None:
            skipped.append(Skipped(device, f"it is the same GPU as {twin.name}"))
        elif of_vulkan is not None and wishes.visible is None and (why := slow(of_vulkan)):
            skipped.append(Skipped(device, f"{why}; --device {device.name} takes it all the same"))
    for device in hidden(findings, wishes):
        skipped.append(Skipped(device, f"{_SOFTWARE}; --device {device.name} takes it all the same"))
    return tuple(skipped)


def _twin(device: Device, findings: Findings) -> Device | None:
    """The same GPU by way of another backend, whose own kernels are the faster ones; the server would serve both."""
    for other in findings.devices:
        if other.is_gpu and other.backend != "Vulkan" and not other.trouble:
            known = bool(other.id and device.id)
            if other.id == device.id if known else other.description == device.description:
                return other
    return None


def _asked(findings: Findings, wishes: Wishes, skipped: tuple[Skipped, ...]) -> Plan:
    """The devices that the user named."""
    there = {device.name.casefold(): device for device in (*findings.devices, *hidden(findings, wishes))}
    served, software = [], False
    for name in wishes.devices:
        device = there.get(name.casefold())
        if device is None:
            offered = ", ".join(f"{one.name} ({one.description})" for one in there.values())
            raise usage_error(f"this machine offers no device {name!r}", f"it offers {offered}")
        if device.trouble:
            raise WorkerError(f"{device.name} cannot be used: it {device.trouble}", "`worker devices` tells more")
        software = software or device.type == "hidden"
        served.append(device._replace(type="gpu") if device.type == "hidden" else device)
    # ggml numbers what this lists, and so do we: what it shows by itself, then the software devices.
    shown = [*_shown(findings), *(one for one in findings.vulkan.devices if one.type == "cpu")]
    visible = ",".join(str(one.number) for one in shown) if software else None
    names = {device.name for device in served}
    return Plan(
        tuple(served),
        tuple(device.name for device in served),
        visible,
        tuple(one for one in skipped if one.device.name not in names),
    )
