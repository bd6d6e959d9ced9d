"""Goal: a GPU that could compute is seen without its driver, and what only draws is not taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.backends.machine import Denied, look


def pci(root: Path, address: str, vendor: str, base: str, driver: str = "") -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{base}\n")
    if driver:
        (device / "driver").symlink_to(f"../../drivers/{driver}")


def node(root: Path, path: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.mark.parametrize(
    ("vendor", "base", "seen"),
    [
        ("0x10de", "0x030000", "NVIDIA"),
        ("0x10de", "0x030200", "NVIDIA"),
        ("0x1002", "0x038000", "AMD"),
        ("0x1002", "0x120000", "AMD"),
        ("0x8086", "0x030000", "Intel"),
        ("0x8086", "0x120000", None),
        ("0x10de", "0x020000", None),
        ("0x1a03", "0x030000", None),
        ("0x1234", "0x030000", None),
        ("0x1af4", "0x038000", None),
    ],
)
def test_a_card_on_the_bus(tmp_path: Path, vendor: str, base: str, seen: str | None) -> None:
    pci(tmp_path, "0000:01:00.0", vendor, base, "x")
    assert list(map(str, look(tmp_path).gpus)) == ([f"{seen} GPU at 0000:01:00.0"] if seen else [])


@pytest.mark.parametrize(
    ("driver", "seen"), [("tegra", True), ("msm_dpu", True), ("virtio_gpu", False), ("vgem", False), ("v3d", False)]
)
def test_a_gpu_beside_an_arm_processor(tmp_path: Path, driver: str, seen: bool) -> None:
    device = tmp_path / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(f"../{driver}")
    assert bool(look(tmp_path).gpus) is seen


def test_nodes_that_may_not_be_opened_are_told_with_their_group(tmp_path: Path) -> None:
    for path in ("dev/nvidia0", "dev/nvidiactl", "dev/dri/renderD128", "dev/dri/card0"):
        node(tmp_path, path)
    (tmp_path / "dev/dri/renderD128").chmod(0o660)
    seen = look(tmp_path, lambda path: "nvidia" in path.name)
    assert seen.nodes == ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128")
    assert [denied.path for denied in seen.denied] == ["/dev/dri/renderD128"]
    assert isinstance(seen.denied[0], Denied)


def test_an_empty_machine(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert (seen.gpus, seen.nodes, seen.denied) == ((), (), ())
