"""The `devices` command: what this machine would offer, and why a GPU is not used."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable

from app import embedded, payload
from app.backends.findings import Device, Findings
from app.backends.policy import Plan
from app.backends.start import Arranger
from app.console import Table, print_plain
from app.errors import ExitCode, WorkerError
from app.options import DevicesOptions

_HEADINGS = ("BACKEND", "NAME", "DESCRIPTION", "MEMORY", "DRIVER", "SERVED")


def run(options: DevicesOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """`worker devices`: always a new look, which later starts remember."""
    carried = embedded.payload()
    arranger = Arranger(
        carried, [], (), os.environ, assets_path=options.backend_assets_path, backend_dir=options.backend_dir
    )
    assets = payload.ensure(carried, options.backend_assets_path, os.environ)
    found = arranger.look(assets, anew=True)
    if found is None:
        raise WorkerError("the devices cannot be told", "start with --log-level debug to see why")
    chosen = arranger.plan(found)
    hidden = (one.device for one in chosen.skipped if one.device not in found.devices)
    devices = [*found.devices, *hidden]
    if options.json:
        print(json.dumps(_facts(found, chosen, devices), indent=2))
        return ExitCode.OK
    rows = tuple(_row(device, device in chosen.served) for device in devices)
    print_plain(Table(_HEADINGS, rows), sys.stdout)
    for line in _remarks(found, chosen):
        print(line)
    return ExitCode.OK


def _row(device: Device, served: bool) -> tuple[str, ...]:
    memory = f"{device.free >> 20} of {device.total >> 20} MiB free" if device.total else "-"
    return (device.backend, device.name, device.description, memory, device.driver or "-", "yes" if served else "no")


def _remarks(found: Findings, chosen: Plan) -> Iterable[str]:
    for library in found.left_out:
        yield f"{library.name} is left out: it {library.detail}"
    for skipped in chosen.skipped:
        yield f"{skipped.device.name} is not served: {skipped.why}"
    for absent in found.absent:
        yield f"{absent.backend} offers nothing: {absent.why}" + (f"; {absent.remedy}" if absent.remedy else "")


def _facts(found: Findings, chosen: Plan, devices: Iterable[Device]) -> dict[str, object]:
    """What `--json` prints; memory in bytes, null where it is unknown."""
    why = {skipped.device.name: skipped.why for skipped in chosen.skipped}
    return {
        "devices": [
            {
                "backend": device.backend,
                "name": device.name,
                "description": device.description,
                "type": device.type,
                "total": device.total or None,
                "free": device.free if device.total else None,
                "driver": device.driver or None,
                "served": device in chosen.served,
                "why_not": why.get(device.name),
            }
            for device in devices
        ],
        "absent": [{"backend": one.backend, "why": one.why, "remedy": one.remedy or None} for one in found.absent],
        "left_out": [{"library": one.name, "why": one.detail} for one in found.left_out],
        "gpus": list(found.gpus),
    }
