"""Goal: what crashes or hangs while it is tried is named and left out, and the rest is found all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.backends import probe
from app.backends.findings import Findings
from app.embedded import Payload
from app.payload import ensure
from tests.backends.conftest import Probed
from tests.conftest import MakePayload


def run(payload: Payload, base: Path, **environ: str) -> Findings | None:
    assets = ensure(payload, str(base), {})
    libraries = {path.name: path for path in sorted(assets.server.parent.glob("*.so"))}
    return probe.probe(assets, libraries, environ)


def states(found: Findings | None) -> dict[str, str]:
    assert found is not None
    return {library.name.removeprefix("libggml-"): library.state for library in found.libraries}


def test_libraries_and_devices_are_found(probed: Probed, base: Path) -> None:
    found = run(probed(cuda="ok CUDA0=H100 CUDA1=H100"), base)
    assert states(found) == {"cpu-x64.so": "ran", "cuda.so": "loaded"}
    assert found is not None
    assert [device.name for device in found.devices] == ["CPU", "CUDA0", "CUDA1"]
    assert (found.devices[1].total, found.devices[1].free, found.devices[0].driver) == (2048, 1024, "cpu-x64")


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_a_library_that_ends_the_probe_is_left_out(
    probed: Probed, base: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "RUN_LIMIT", 1.0 if how == "hang" else 30.0)
    found = run(probed(cuda=how, hip=how), base)
    state = "hung" if how == "hang" else "crashed"
    assert states(found) == {"cpu-x64.so": "ran", "cuda.so": state, "hip.so": state}
    assert found is not None
    assert ("SIGILL" if how == "crash" else "did not answer within 1 s") in found.left_out[0].detail


def test_a_device_that_ends_the_probe_is_in_trouble_and_the_others_are_not(probed: Probed, base: Path) -> None:
    found = run(probed(cuda="ok CUDA0=old/crash CUDA1=new"), base)
    assert states(found)["cuda.so"] == "loaded"
    assert found is not None
    assert ["SIGILL" in device.trouble for device in found.devices] == [False, True, False]


def test_a_cpu_variant_that_computes_no_more_is_a_broken_library(probed: Probed, base: Path) -> None:
    assert states(run(probed(cpu_zen4="ok CPU=Some/crash"), base)) == {"cpu-x64.so": "ran", "cpu-zen4.so": "crashed"}


@pytest.mark.parametrize(
    "line",
    [
        '{"device": "GPU0"}',
        '{"library": "no such library", "state": "ran"}',
        '{"tried": "GPU0", "trouble": ""}',
        '{"device": "GPU0", "description": 5, "backend": "B", "type": "gpu", "total": "much", "free": 0, "id": ""}',
        '{"library": []}',
    ],
)
def test_a_library_that_writes_among_the_answers_is_no_traceback(
    make_payload: MakePayload, base: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    probe_program = f"#!/bin/sh\necho '{line}'\necho '{{\"end\": true}}'\n".encode()
    files = {"llama-cpp-rpc-server": b"#!/bin/sh\n", "worker-probe": probe_program, "libggml-cpu-x64.so": b"cpu"}
    payload = make_payload({f"backend-assets/util/{name}": content for name, content in files.items()})
    assert run(payload, base) is None
    assert "the backends cannot be tried" in caplog.text


MESA = {"info": "Mesa 24", "api": "1.3.0"}
VULKAN = [
    {"physical": 0, "name": "V3D-7", "type": "integrated", "driver": "V3DV", **MESA},
    {"physical": 1, "name": "RX", "type": "discrete", "driver": "radv", "suitable": True, **MESA},
]


def test_a_slow_device_is_listed_and_not_tried(probed: Probed, base: Path) -> None:
    payload = probed(vulkan="ok Vulkan0=V3D-7/crash Vulkan1=RX")
    found = run(payload, base, FAKE_VULKAN=json.dumps(VULKAN))
    assert found is not None
    assert [(device.name, device.trouble, device.driver) for device in found.devices[1:]] == [
        ("Vulkan0", "", "V3DV Mesa 24"),
        ("Vulkan1", "", "radv Mesa 24"),
    ]
    assert [device.suitable for device in found.vulkan.devices] == [False, True]


@pytest.mark.parametrize("carried", [True, False])
def test_the_carried_loader_stands_in_for_a_missing_one(make_payload: MakePayload, base: Path, carried: bool) -> None:
    """The probe sees it at the very end of its library path, and only when the system has none."""
    script = (
        "#!/bin/sh\n"
        'if [ "$1" = load ]; then echo \'{"end": true}\'; exit; fi\n'
        'case "$LD_LIBRARY_PATH" in */backend-assets/vulkan) echo \'{"end": true}\' ;;\n'
        ' *) echo \'{"vulkan": "loader", "detail": "libvulkan.so.1: no such file"}\' ;; esac\n'
    )
    files = {
        "backend-assets/util/llama-cpp-rpc-server": b"x",
        "backend-assets/util/worker-probe": script.encode(),
        "backend-assets/util/libggml-vulkan.so": b"x",
        **({"backend-assets/vulkan/libvulkan.so.1": b"x"} if carried else {}),
    }
    found = run(make_payload(files), base)
    assert found is not None
    assert (found.vulkan.carried_loader, found.vulkan.problem) == (carried, "" if carried else "loader")
    skipping = run(make_payload(files), base, LOCALAI_SKIP_LIBRARY_PATH="1")
    assert skipping is not None
    assert skipping.vulkan.problem == "loader"


def test_the_secret_does_not_reach_the_probe(make_payload: MakePayload, base: Path) -> None:
    script = b'#!/bin/sh\n[ -z "$LOCALAI_TOKEN$TOKEN" ] && echo \'{"end": true}\' || exit 1\n'
    files = {"backend-assets/util/llama-cpp-rpc-server": b"x", "backend-assets/util/worker-probe": script}
    assert run(make_payload(files), base, TOKEN="sesame", LOCALAI_TOKEN="sesame") == Findings()


def test_a_probe_that_cannot_run_stops_nobody(
    make_payload: MakePayload, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"backend-assets/util/llama-cpp-rpc-server": b"x", "backend-assets/util/worker-probe": b"\x7fELFnonsense"}
    assert run(make_payload(files), base) is None
    assert "the backends cannot be tried" in caplog.text


def test_a_probe_that_loses_every_library_comes_to_an_end(probed: Probed, base: Path) -> None:
    found = run(probed(cpu_x64="crash", cuda="crash"), base)
    assert set(states(found).values()) == {"crashed"}
