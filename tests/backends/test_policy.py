"""Goal: fast devices are served, slow ones only when they are asked for, and a wrong wish is one clear error."""

from __future__ import annotations

import pytest

from app.backends.findings import Absence, Device, Findings, Library, Physical, Vulkan
from app.backends.policy import Wishes, hidden, plan, slow
from app.errors import ExitCode, WorkerError

CPU = Device("CPU", "Some CPU", "CPU", "cpu")
LLVMPIPE = "llvmpipe (LLVM 15.0.6, 256 bits)"


def gpu(number: int, name: str, *, backend: str = "Vulkan", id: str = "", trouble: str = "") -> Device:
    return Device(f"{backend}{number}", name, backend, "gpu", id=id, trouble=trouble)


def listed(index: int, name: str, driver: str, kind: str = "discrete") -> Physical:
    return Physical(index, name, kind, driver, "", "1.3.0", True)


RADEON, PI = listed(0, "RX 7900", "radv"), listed(0, "V3D 7.1.7", "V3DV Mesa", "integrated")
SOFTWARE = listed(1, LLVMPIPE, "llvmpipe", "cpu")


def found(*devices: Device, vulkan: tuple[Physical, ...] = ()) -> Findings:
    return Findings((Library("libggml-cpu-x64.so", "ran"),), (CPU, *devices), Vulkan(devices=vulkan))


def names(devices: tuple[Device, ...]) -> list[str]:
    return [device.name for device in devices]


@pytest.mark.parametrize(
    ("device", "is_slow"),
    [
        (listed(0, "V3D 4.2", "V3DV Mesa"), True),
        (listed(0, "Mali-G610", "panvk"), True),
        (listed(0, LLVMPIPE, "llvmpipe", "cpu"), True),
        (listed(0, "SwiftShader Device (LLVM 10.0.0)", "SwiftShader driver", "cpu"), True),
        (listed(0, "Virtio-GPU Venus (llvmpipe)", "venus", "virtual"), True),
        (listed(0, "another software driver", "x", "cpu"), True),
        (listed(0, "NVIDIA H100", "NVIDIA"), False),
        (listed(0, "AMD Radeon RX 7900 XTX (RADV NAVI31)", "radv"), False),
        (listed(0, "Intel(R) Arc(tm) A770", "Intel open-source Mesa driver"), False),
    ],
)
def test_what_is_known_to_be_slow(device: Physical, is_slow: bool) -> None:
    assert bool(slow(device)) is is_slow


def test_without_a_gpu_the_cpu_is_served_as_ever() -> None:
    chosen = plan(found(), Wishes())
    assert names(chosen.served) == ["CPU"]
    assert (chosen.devices, chosen.visible, chosen.skipped, chosen.gpu) == ((), None, (), False)


def test_a_gpu_is_served_and_the_server_need_not_be_told() -> None:
    chosen = plan(found(gpu(0, "RX 7900"), vulkan=(RADEON,)), Wishes(require_gpu=True))
    assert (names(chosen.served), chosen.devices, chosen.gpu) == (["Vulkan0"], (), True)


def test_a_slow_gpu_is_passed_over() -> None:
    pi = found(gpu(0, "V3D 7.1.7"), vulkan=(PI,))
    chosen = plan(pi, Wishes())
    assert (names(chosen.served), chosen.devices) == (["CPU"], ("CPU",))
    assert "--device Vulkan0" in chosen.skipped[0].why
    assert names(plan(pi, Wishes(("vulkan0",))).served) == ["Vulkan0"]
    assert names(plan(pi, Wishes(visible="0")).served) == ["Vulkan0"]
    with pytest.raises(WorkerError, match=r"no GPU can be served.*\n.*Raspberry Pi"):
        plan(pi, Wishes(require_gpu=True))


def test_beside_a_slow_one_the_others_are_named() -> None:
    both = found(gpu(0, "RX 7900"), gpu(1, "V3D 7.1.7"), vulkan=(RADEON, PI))
    assert plan(both, Wishes()).devices == ("Vulkan0",)


def test_a_software_device_appears_when_it_is_asked_for() -> None:
    alone = found(vulkan=(listed(0, LLVMPIPE, "llvmpipe", "cpu"),))
    assert names(plan(alone, Wishes()).served) == ["CPU"]
    chosen = plan(alone, Wishes(("Vulkan0",)))
    assert (chosen.devices, chosen.visible, chosen.gpu) == (("Vulkan0",), "0", True)


def test_beside_a_gpu_the_software_device_has_the_number_behind_it() -> None:
    machine = found(gpu(0, "RX 7900"), vulkan=(listed(0, LLVMPIPE, "llvmpipe", "cpu"), listed(1, "RX 7900", "radv")))
    assert names(hidden(machine, Wishes())) == ["Vulkan1"]
    chosen = plan(machine, Wishes(("Vulkan1",)))
    assert chosen.visible == "1,0", "Vulkan0 must stay the GPU"
    assert plan(machine, Wishes(("Vulkan0",))).visible is None


def test_the_users_own_choice_of_visible_devices_stands() -> None:
    machine = found(gpu(0, LLVMPIPE), vulkan=(listed(0, LLVMPIPE, "llvmpipe", "cpu"),))
    chosen = plan(machine, Wishes(visible="0"))
    assert (names(chosen.served), chosen.devices, chosen.visible) == (["Vulkan0"], (), None)


@pytest.mark.parametrize("same", ["bus", "name"])
def test_one_gpu_behind_two_backends_is_served_once(same: str) -> None:
    place = "0000:01:00.0" if same == "bus" else ""
    vulkan = gpu(0, "NVIDIA H100", id=place)
    cuda = gpu(0, "NVIDIA H100" if same == "name" else "H100 PCIe", backend="CUDA", id=place)
    machine = found(cuda, vulkan, vulkan=(listed(0, "NVIDIA H100", "NVIDIA"),))
    assert plan(machine, Wishes()).devices == ("CUDA0",)


def test_a_device_in_trouble_is_passed_over_and_cannot_be_asked_for() -> None:
    machine = found(gpu(0, "RX 7900", trouble="computes wrong numbers"), vulkan=(RADEON,))
    assert plan(machine, Wishes()).devices == ("CPU",)
    with pytest.raises(WorkerError, match="Vulkan0 cannot be used: it computes wrong numbers"):
        plan(machine, Wishes(("Vulkan0",)))


def test_an_unknown_device_is_told_from_those_that_are_there() -> None:
    with pytest.raises(WorkerError, match="offers no device 'CUDA7'") as caught:
        plan(found(vulkan=(SOFTWARE,)), Wishes(("CUDA7",)))
    assert caught.value.code == ExitCode.USAGE
    assert "CPU (Some CPU)" in caught.value.hint
    assert "Vulkan0 (llvmpipe" in caught.value.hint


def test_a_required_gpu_that_is_missing_is_explained() -> None:
    machine = Findings((), (CPU,), absent=(Absence("Vulkan", "no driver", "install one"), Absence("CUDA", "no GPU")))
    with pytest.raises(WorkerError) as caught:
        plan(machine, Wishes(require_gpu=True))
    assert caught.value.message.splitlines()[1:] == ["  Vulkan: no driver", "  CUDA: no GPU"]
    assert caught.value.hint.startswith("install one; ")
    with pytest.raises(WorkerError, match="carries no backend for a GPU"):
        plan(found(), Wishes(require_gpu=True))


def test_a_machine_where_nothing_computes_is_an_error() -> None:
    with pytest.raises(WorkerError, match="failed its trial"):
        plan(Findings((Library("libggml-cpu-x64.so", "crashed", "failed its trial"),)), Wishes())
