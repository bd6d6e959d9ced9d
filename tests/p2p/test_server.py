"""Goal: what a server answered becomes a state that our own messages can carry."""

from __future__ import annotations

import pytest

from app.p2p.frames import MAX_NAME, MAX_TEXT, Device, Status
from app.p2p.frames import State as WorkerState
from app.p2p.records import dump, load
from app.p2p.rpc import DeviceMemory, DeviceName, Probe
from app.p2p.server import Ready, describe

TWO = Probe("7.0.0", (DeviceMemory(total=20, free=10), DeviceMemory(total=40, free=30)))


def test_each_memory_gets_the_name_in_its_place() -> None:
    names = [DeviceName("CUDA0", "NVIDIA H100"), DeviceName("CUDA1", "NVIDIA H200")]

    assert describe(TWO, names) == Ready(
        (Device("CUDA0", "NVIDIA H100", total=20, free=10), Device("CUDA1", "NVIDIA H200", total=40, free=30)), "7.0.0"
    )


def test_devices_without_a_name_are_numbered() -> None:
    assert [device.name for device in describe(TWO, [DeviceName("CPU", "")]).devices] == ["CPU", "device1"]
    assert [device.name for device in describe(TWO, []).devices] == ["device0", "device1"]


def test_the_names_of_an_earlier_look_are_kept_and_the_memory_is_new() -> None:
    earlier = describe(TWO, [DeviceName("CUDA0", "one"), DeviceName("CUDA1", "two")])
    now = Probe("7.0.0", (DeviceMemory(total=20, free=1), DeviceMemory(total=40, free=2)))

    assert describe(now, earlier.devices) == Ready(
        (Device("CUDA0", "one", total=20, free=1), Device("CUDA1", "two", total=40, free=2)), "7.0.0"
    )


@pytest.mark.parametrize("description", ["d" * 2 * MAX_TEXT, "a\ttab", "\x1b[2J"])
def test_whatever_it_prints_fits_a_message(description: str) -> None:
    ready = describe(TWO, [DeviceName("n" * 2 * MAX_NAME, description)] * 2)
    status = Status(WorkerState.READY, "", 0, ready.protocol, ready.devices)

    assert load(Status, dump(status)) == status
