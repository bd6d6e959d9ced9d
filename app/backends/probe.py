"""Runs the carried `worker-probe` (native/probe.cpp) until it comes to its end, leaving out what crashes it."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import launch
from app.backends import findings, policy
from app.backends.findings import CRASHED, HUNG, Device, Findings, Library, Physical, Vulkan, kind
from app.payload import PROBE, VULKAN_LOADER, Assets

RUN_LIMIT = 30.0
"""Seconds for one run: eight CUDA contexts take some; a driver that hangs does so for ever."""
LIMIT = 90.0
"""Seconds for all of them, after which the server is started as it is."""

_UNINTELLIGIBLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What reading events raises where a library that was loaded has written among them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One run of the probe."""

    events: list[dict[str, Any]]
    how: str
    """How it ended before its time, to be read after a name; empty when it came to its end."""
    hung: bool = False

    @property
    def last_step(self) -> tuple[str, str]:
        """What it was about to do, and with what."""
        steps = [event for event in self.events if "step" in event]
        return (steps[-1]["step"], steps[-1]["of"]) if steps else ("", "")


@dataclass
class _Trouble:
    """What the runs so far had to do without."""

    libraries: dict[str, Library] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """Name -> how it ended the probe."""


def probe(assets: Assets, libraries: Mapping[str, Path], environ: Mapping[str, str]) -> Findings | None:
    """Load `libraries` (name -> path) as the server would with `environ`; None when the probe itself cannot run.

    A device that is known to be slow is listed and not tried: that alone may take a minute, or for ever.
    """
    vulkan = _ask_vulkan(assets, environ) if any(kind(name) == "vulkan" for name in libraries) else Vulkan()
    loaders = (assets.loaders,) if vulkan.carried_loader else ()
    left = [device.name for device in vulkan.devices if policy.slow(device)]
    names = {str(path): name for name, path in libraries.items()}
    trouble = _Trouble()
    deadline = time.monotonic() + LIMIT
    while True:
        paths = [path for path, name in names.items() if name not in trouble.libraries]
        run = _run(assets, [*_flags("--left", left), *_flags("--untried", trouble.devices), *paths], environ, loaders)
        try:
            if not run.how:
                return _findings(run.events, names, trouble, vulkan)
            culprit = _culprit(run, names)
        except _UNINTELLIGIBLE as error:
            log.warning("the backends cannot be tried: the probe's answer is none (%r)", error)
            return None
        if not culprit or time.monotonic() > deadline:
            log.warning("the backends cannot be tried: the probe %s", run.how)
            return None
        where, name = culprit
        how = f"failed its trial, whose process {run.how}"
        if where == "library":
            trouble.libraries[name] = Library(name, HUNG if run.hung else CRASHED, how)
        else:
            trouble.devices[name] = how


def _ask_vulkan(assets: Assets, environ: Mapping[str, str]) -> Vulkan:
    """The system's own loader first."""
    found = _vulkan(_run(assets, None, environ))
    if (
        found.problem == "loader"
        and (assets.path / VULKAN_LOADER).exists()
        and not environ.get(launch.SKIP_LIBRARY_PATH)
    ):
        again = _run(assets, None, environ, (assets.loaders,))
        found = _vulkan(again)._replace(carried_loader=True)
    return found


def _run(
    assets: Assets, words: Sequence[str] | None, environ: Mapping[str, str], libraries: Sequence[Path] = ()
) -> _Run:
    """`words`: what is to be loaded; None asks for what Vulkan lists."""
    arguments = ["vulkan"] if words is None else ["load", *words]
    command = launch.server_command(assets, arguments, environ, program=assets.path / PROBE, libraries=libraries)
    how, hung, out, err = "", False, b"", b""
    try:
        result = subprocess.run(
            command.argv, env=command.env, cwd=command.cwd, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=RUN_LIMIT, check=False,
        )  # fmt: skip
        out, err = result.stdout, result.stderr
        how = launch.tell_status(result.returncode) if result.returncode else ""
    except subprocess.TimeoutExpired as late:
        out, err = late.stdout or b"", late.stderr or b""
        how, hung = f"did not answer within {RUN_LIMIT:g} s", True
    except OSError as error:
        how = f"cannot be started: {(error.strerror or str(error)).lower()}"
    for line in err.decode(errors="replace").splitlines():
        log.debug("probe: %s", line)
    return _Run(_parse(out), how, hung)


def _parse(out: bytes) -> list[dict[str, Any]]:
    events = []
    for line in out.decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # the last line of one that died
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            log.debug("probe: %s", line)
    return events


def _culprit(run: _Run, names: Mapping[str, str]) -> tuple[str, str] | None:
    """Whether it was a library or a device that ended the probe, and its name."""
    step, of = run.last_step
    if step == "try":
        running = [event["of"] for event in run.events if event.get("step") == "run"]
        done = [event["library"] for event in run.events if event.get("state") in ("ran", "wrong")]
        variant = [path for path in running if path not in done]
        return ("library", names[variant[0]]) if variant else ("device", of)
    if step == "ask":  # before it could be left untried
        loaded = [event["of"] for event in run.events if event.get("step") in ("load", "run")]
        return ("library", names[loaded[-1]])
    return ("library", names[of]) if of in names else None


def _findings(
    events: Sequence[Mapping[str, Any]], names: Mapping[str, str], trouble: _Trouble, vulkan: Vulkan
) -> Findings:
    libraries = dict(trouble.libraries)
    devices: dict[str, Device] = {}
    for event in events:
        if "library" in event:
            name = names[event["library"]]
            libraries[name] = Library(name, event["state"], event.get("detail", "").strip())
        elif "device" in event:
            device = Device(
                event["device"], event["description"], event["backend"], event["type"], event["total"], event["free"],
                event["id"], trouble=trouble.devices.get(event["device"], ""),
            )  # fmt: skip
            devices[device.name] = device
        elif "tried" in event:
            devices[event["tried"]] = devices[event["tried"]]._replace(trouble=event["trouble"].strip())
    found = findings.checked(Findings(tuple(libraries.values()), tuple(devices.values()), vulkan))
    return found._replace(devices=tuple(_with_driver(device, found) for device in found.devices))


def _with_driver(device: Device, found: Findings) -> Device:
    of_vulkan = policy.physical(device, found)
    if of_vulkan is not None:
        return device._replace(driver=policy.driver_of(of_vulkan))
    variant = next((one.name for one in found.libraries if one.state == "ran" and device.type == "cpu"), "")
    return device._replace(driver=variant.removeprefix("libggml-").removesuffix(".so"))


def _vulkan(run: _Run) -> Vulkan:
    try:
        return _read_vulkan(run)
    except _UNINTELLIGIBLE as error:
        log.warning("Vulkan cannot be asked: the probe's answer is none (%r)", error)
        return Vulkan()


def _read_vulkan(run: _Run) -> Vulkan:
    if run.how and run.events:
        return Vulkan(HUNG if run.hung else CRASHED, run.how)
    if run.how:  # one that was built without Vulkan says nothing
        return Vulkan()
    problem = next((event for event in run.events if "vulkan" in event), None)
    if problem is not None:
        return Vulkan(problem["vulkan"], problem["detail"])
    found = [event for event in run.events if "physical" in event]
    return Vulkan(
        devices=tuple(
            Physical(
                one["physical"], one["name"], one["type"], one["driver"], one["info"], one["api"],
                one.get("suitable", False),
            )
            for one in found
        )
    )  # fmt: skip


def _flags(flag: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]
