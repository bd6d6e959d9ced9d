"""What is known of workers in words, table rows and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.console import Table
from app.p2p.dialer import Failure
from app.p2p.frames import Device, State
from app.p2p.pump import Traffic
from app.p2p.roster import Change, News, Worker

_GIB = 1 << 30
_UNITS = ("B", "kB", "MB", "GB", "TB")
_THOUSAND = 1000.0
_TINY = 1e-3
"""Seconds, so that nothing is divided by none."""


@dataclass(frozen=True)
class TunnelView:
    """What the table shows of a tunnel."""

    port: int
    traffic: Traffic


def state(worker: Worker, now: float) -> str:
    """Such as `ready`, `busy: desk, 42 s`, `lost`; `now` by the roster's clock."""
    if not worker.there:
        return "lost"
    if worker.status.state is State.BUSY:
        return f"busy: {worker.status.holder}, {held_for(worker, now)} s"
    return str(worker.status.state.value)


def held_for(worker: Worker, now: float) -> int:
    """Seconds that the holder has had the lease; 0 without one."""
    return worker.status.since + int(now - worker.updated) if worker.status.holder else 0


def as_json(worker: Worker, now: float) -> dict[str, Any]:
    """One object of `list --json`; README documents the keys."""
    hello, status = worker.hello, worker.status
    return {
        "id": worker.id,
        "name": worker.name,
        "addresses": list(map(str, worker.addresses)),
        "state": status.state.value if worker.there else None,
        "holder": status.holder or None,
        "since": held_for(worker, now),
        "devices": [asdict(device) for device in status.devices],
        "rpc": status.rpc or None,
        "llama_cpp": hello.llama_cpp or None,
        "llama_cpp_commit": hello.llama_cpp_commit or None,
        "version": hello.version,
        "sandbox": hello.sandbox or None,
        "found": worker.found.value,
        "problem": None if worker.there else "lost",
    }


def failure_as_json(failure: Failure) -> dict[str, Any]:
    """A candidate that cannot be used, with the same keys as `as_json`; what is not known is null."""
    candidate = failure.candidate
    return {
        "id": candidate.worker_id or None,
        "name": None,
        "addresses": list(map(str, candidate.addresses)),
        **dict.fromkeys(("state", "holder", "since")),
        "devices": [],
        **dict.fromkeys(("rpc", "llama_cpp", "llama_cpp_commit", "version", "sandbox")),
        "found": candidate.found.value,
        "problem": str(failure.error),
    }


def overview(workers: Sequence[Worker], failures: Sequence[Failure], now: float) -> Table:
    """What `list` shows."""
    headings = ("name", "id", "address", "state", "device", "free / total", "rpc", "llama.cpp", "version")
    rows: list[tuple[str, ...]] = [
        (
            worker.name,
            worker.id,
            str(worker.address),
            state(worker, now),
            *_devices(worker.status.devices),
            worker.status.rpc,
            worker.hello.llama_cpp,
            worker.hello.version,
        )
        for worker in workers
    ]
    for failure in failures:
        addresses = "\n".join(map(str, failure.candidate.addresses))
        rows.append(("-", failure.candidate.worker_id, addresses, str(failure.error), *[""] * (len(headings) - 4)))
    return Table(headings, tuple(rows))


class Traffics:
    """The table of `connect`: what each worker is, what goes through its tunnel, and how fast."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, Traffic]] = {}

    def table(self, rows: Sequence[tuple[Worker, TunnelView | None]], now: float) -> Table:
        """Rates are since the last call."""
        headings = ("worker", "tunnel", "device", "free / total", "rpc", "state", "traffic")
        return Table(headings, tuple(self._row(worker, tunnel, now) for worker, tunnel in rows))

    def _row(self, worker: Worker, tunnel: TunnelView | None, now: float) -> tuple[str, ...]:
        return (
            f"{worker.name}\n{worker.address}",
            str(tunnel.port) if tunnel else "-",
            *_devices(worker.status.devices),
            worker.status.rpc,
            state(worker, now),
            self._traffic(worker.place, tunnel.traffic, now) if tunnel else "",
        )

    def _traffic(self, place: int, traffic: Traffic, now: float) -> str:
        since, before = self._last.get(place, (now, traffic))
        self._last[place] = (now, traffic)
        passed = max(now - since, _TINY)
        sent = _amount(traffic.to_peer, (traffic.to_peer - before.to_peer) / passed)
        received = _amount(traffic.from_peer, (traffic.from_peer - before.from_peer) / passed)
        return f"sent {sent}\nreceived {received}"


class Chronicle:
    """Changes as sentences, each said once."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[State, str]] = {}

    def sentence(self, change: Change) -> str | None:
        """None when it is not worth a line: a server that is checked after each connection, memory that changes."""
        worker = change.worker
        if worker is None:
            return None
        shown = (worker.status.state, worker.status.holder)
        before = self._last.get(worker.place)
        if change.news in (News.FOUND, News.BACK):
            self._last[worker.place] = shown
            return f"{change.news.value}: {_introduction(worker)}"
        if change.news is News.LOST:
            return f"lost: {worker.name} ({worker.address}): {change.reason}"
        if shown == before or worker.status.state is State.CHECKING:
            return None
        self._last[worker.place] = shown
        return f"{worker.name} is {state(worker, worker.updated)}"


def _introduction(worker: Worker) -> str:
    devices = ", ".join(f"{device.name} {device.description} {_memory(device)}" for device in worker.status.devices)
    rpc = f"RPC {worker.status.rpc}" if worker.status.rpc else ""
    parts = (f"{worker.name} ({worker.address})", state(worker, worker.updated), rpc, devices)
    return ", ".join(filter(None, parts))


def _devices(devices: Sequence[Device]) -> tuple[str, str]:
    """Two cells with a line for each device."""
    names = "\n".join(f"{device.name} {device.description}".strip() for device in devices)
    return names, "\n".join(map(_memory, devices))


def _memory(device: Device) -> str:
    return f"{device.free / _GIB:.1f} / {device.total / _GIB:.1f} GiB"


def _amount(count: float, rate: float) -> str:
    return f"{_bytes(count)} ({_bytes(rate)}/s)" if rate else _bytes(count)


def _bytes(count: float) -> str:
    for unit in _UNITS:
        if count < _THOUSAND or unit == _UNITS[-1]:
            break
        count /= _THOUSAND
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
