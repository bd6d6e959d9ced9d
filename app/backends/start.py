"""What stands between unpacked assets and a started server: look at the machine, or remember; choose; arrange.

What a start with a kept verdict has no use for is imported where it is used: a millisecond for each module.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from app import launch, payload
from app.backends import policy, verdict
from app.backends.findings import Findings, kind
from app.backends.policy import Plan, Wishes
from app.embedded import Payload
from app.errors import WorkerError
from app.launch import ServerCommand
from app.payload import PROBE, SERVER, Assets

_VISIBLE = "GGML_VK_VISIBLE_DEVICES"
_BACKEND_PATH = "GGML_BACKEND_PATH"

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """A carried program ready to be started, while the descriptors that keep its files from being pruned are open."""

    command: ServerCommand
    held: tuple[int, ...]
    plan: Plan


class Arranger:
    """Prepares starts of the server, one after the other; says what it decided when that is new."""

    def __init__(
        self,
        carried: Payload,
        arguments: list[str],
        devices: tuple[str, ...],
        environ: Mapping[str, str],
        *,
        assets_path: str | None,
        backend_dir: str | None = None,
        require_gpu: bool = False,
        insist: bool = False,
    ) -> None:
        """`arguments` are the server's, `devices` those that they name; the rest is what the user wants.

        `insist`: name the devices to the server. In p2p mode a sandbox stands between it and the driver, and is
        lifted when the server ends at once. Raises `WorkerError`: unsafe own backends.
        """
        self._carried = carried
        self._assets_path = assets_path
        self._arguments = arguments
        self._environ = environ
        self._own = _own_backends(backend_dir)
        visible = launch.user_environment(environ).get(_VISIBLE)
        self._wishes = Wishes(devices, visible, require_gpu, insist)
        self._said: Plan | None = None
        self._kept: tuple[Path, str] | None = None

    def prepare(self) -> Start:
        """Verify the files, unpack them where need be, and arrange what the server shall see.

        Raises `WorkerError`: unusable assets, a device that is not there, a required GPU that is not.
        """
        return self._holding(self._prepare)

    def prepare_other(self, part: Payload, file: str) -> Start:
        """Arrange the program `file` of another carried part, with the backends that are good for something here.

        Raises as `prepare` does.
        """
        return self._holding(lambda assets, held: self._prepare_other(assets, held, part, file))

    def forget(self) -> None:
        """A server that was started after `prepare` never answered: look at the machine anew the next time."""
        if self._kept is not None:
            verdict.forget(*self._kept)

    def look(self, assets: Assets, *, anew: bool) -> Findings | None:
        """What the machine offers, out of the kept verdict unless `anew`; None when no probe could run."""
        manifest = self._carried.manifest
        if PROBE not in manifest.files:
            return None
        environ = launch.user_environment(self._environ)
        libraries = self._libraries(assets, environ)
        outside = [path for name, path in libraries.items() if name in self._own or "/" in name]
        outside += (assets.base / "lib").glob("*")
        name = verdict.name_of(manifest.digest, environ, outside)
        found = None if anew else verdict.read(assets.base, name)
        self._kept = (assets.base, name)
        if found is None or (self._wishes.require_gpu and not found.has_gpu):
            found = self._probe(assets, libraries)
            if found is not None and not found.passing:
                verdict.keep(assets.base, name, found)
        return found

    def plan(self, found: Findings) -> Plan:
        """What will be served of it. Raises as `prepare` does."""
        return policy.plan(found, self._wishes)

    def _prepare(self, assets: Assets, held: list[int]) -> Start:
        found = self.look(assets, anew=False)
        if found is None and self._wishes.require_gpu:
            raise WorkerError("a GPU is required, and none could be looked for", "--log-level debug tells why")
        if found is None:
            found, chosen = Findings(), Plan()
        else:
            chosen = self.plan(found)
            self._say(found, chosen)
        left_out = {library.name for library in found.left_out}
        environ = self._without(left_out)
        if chosen.visible is not None:
            environ[_VISIBLE] = chosen.visible
        program = assets.server
        if self._own or any("/" not in name for name in left_out):
            from app.backends import links

            made = links.ensure(assets, self._carried.manifest, SERVER, self._wanted(assets, left_out))
            held.append(made.fd)
            program = made.program
        arguments = list(self._arguments)
        if chosen.devices and not self._wishes.devices:
            arguments += ["--device", ",".join(chosen.devices)]
        command = launch.server_command(assets, arguments, environ, program=program, libraries=_loaders(assets, found))
        return Start(command, tuple(held), chosen)

    def _prepare_other(self, assets: Assets, held: list[int], part: Payload, file: str) -> Start:
        from app.backends import links

        other = payload.ensure(part, str(assets.base), self._environ)
        held.append(other.fd)
        found = self.look(assets, anew=False) or Findings()
        chosen = self.plan(found) if found.libraries else Plan()
        for library in found.left_out:
            log.warning("%s is left out: it %s", library.name, library.detail)
        left_out = {library.name for library in found.left_out}
        wanted = self._wanted(assets, left_out | _idle(found, chosen))
        made = links.ensure(other, part.manifest, file, wanted)
        held.append(made.fd)
        environ = self._without(left_out)
        command = launch.server_command(assets, [], environ, program=made.program, libraries=_loaders(assets, found))
        return Start(command, tuple(held), chosen)

    def _holding(self, arrange: Callable[[Assets, list[int]], Start]) -> Start:
        """What `arrange` makes of the verified files. What it opens goes to the list, which is closed if it fails."""
        assets = payload.ensure(self._carried, self._assets_path, self._environ)
        held = [assets.fd]
        try:
            return arrange(assets, held)
        except BaseException:
            for fd in held:
                os.close(fd)
            raise

    def _without(self, left_out: set[str]) -> dict[str, str]:
        """The environment, without the user's backend where it is one of those."""
        environ = dict(self._environ)
        if environ.get(_BACKEND_PATH) and _absolute(environ[_BACKEND_PATH]) in left_out:
            del environ[_BACKEND_PATH]
        return environ

    def _libraries(self, assets: Assets, environ: Mapping[str, str]) -> dict[str, Path]:
        """What the server would load: name -> path. A library of the user's stands for ours of the same name."""
        beside = _beside(assets, self._carried)
        found = {name: path for name, path in beside.items() if name.endswith(".so")} | self._own
        if environ.get(_BACKEND_PATH):
            path = _absolute(environ[_BACKEND_PATH])
            found[path] = Path(path)
        return found

    def _wanted(self, assets: Assets, left_out: set[str]) -> dict[str, Path]:
        wanted = _beside(assets, self._carried) | self._own
        return {name: path for name, path in wanted.items() if name not in left_out}

    def _probe(self, assets: Assets, libraries: Mapping[str, Path]) -> Findings | None:
        from app.backends import machine, probe, reasons

        found = probe.probe(assets, libraries, self._environ)
        if found is None:
            return None
        seen = machine.look()
        return found._replace(absent=reasons.absences(found, seen), gpus=tuple(map(str, seen.gpus)))

    def _say(self, found: Findings, chosen: Plan) -> None:
        if chosen == self._said:
            return
        self._said = chosen
        for name in sorted(self._own):
            log.info("%s: your own, from %s", name, self._own[name].parent)
        for library in found.left_out:
            log.warning("%s is left out: it %s", library.name, library.detail)
        for skipped in () if self._wishes.devices else chosen.skipped:
            quiet = logging.DEBUG if skipped.device.type == "hidden" else logging.INFO
            level = logging.WARNING if skipped.device.trouble else quiet
            log.log(level, "%s, %s, is not served: %s", skipped.device.name, skipped.device.description, skipped.why)
        if found.gpus and not chosen.gpu and not self._wishes.devices:
            log.warning("A GPU IS NOT USED. There is the %s, but only the CPU is served.", ", ".join(found.gpus))
            for absent in found.absent:
                log.warning("%s: %s%s", absent.backend, absent.why, f" ({absent.remedy})" if absent.remedy else "")


def _own_backends(directory: str | None) -> dict[str, Path]:
    if not directory:
        return {}
    from app.backends import own

    return own.find(directory)


def _beside(assets: Assets, carried: Payload) -> dict[str, Path]:
    """Every library that lies beside the server: name -> path."""
    place = assets.server.parent
    paths = [assets.path / file for file in carried.manifest.files]
    return {path.name: path for path in paths if path.parent == place and path.name.startswith("libggml")}


def _loaders(assets: Assets, found: Findings) -> tuple[Path, ...]:
    """For the library path: the carried Vulkan loader, where the machine has none."""
    return (assets.loaders,) if found.vulkan.carried_loader else ()


def _idle(found: Findings, chosen: Plan) -> set[str]:
    """The GPU backends that offer nothing worth using: a program that takes every device shall not see theirs."""
    used = {device.backend.casefold() for device in chosen.served}
    gpus = {device.backend.casefold() for device in found.devices if device.is_gpu} - used
    return {library.name for library in found.libraries if kind(library.name) in gpus}


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
