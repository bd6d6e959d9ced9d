"""Where a head looks for workers, and what it says when there are none."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.errors import ExitCode, WorkerError, usage_error
from app.options import ConnectOptions, ListOptions
from app.p2p.browser import Browser, Sighting
from app.p2p.dialer import Candidate, Failure, Found
from app.p2p.frames import Hello, Purpose
from app.p2p.identity import Authority
from app.p2p.link import Address, Head, Problem, new_head
from app.p2p.membership import join
from app.p2p.peers import parse_peer, read_peers_file
from app.p2p.roster import Change, Roster

_MAX_NAMED = 5
"""Failures that an error names."""


class Search:
    """A head's options, read and checked: who it is, and where it looks."""

    def __init__(self, options: ConnectOptions | ListOptions, purpose: Purpose) -> None:
        """Of two tokens in a file the first one counts: a head belongs to one network. Raises WorkerError."""
        self._options = options
        self._purpose = purpose
        self._peers: list[Address] = [parse_peer(text) for text in options.peer]
        if options.peers_file is not None:
            self._peers += read_peers_file(Path(options.peers_file))
        if options.no_mdns and not self._peers:
            raise usage_error("there is nowhere to look: --no-mdns and no --peer", "name workers with --peer HOST:PORT")
        self._authority: Authority = join(options, os.environ)[0]

    def head(self) -> Head:
        """Who we are from now on; the name is what other heads see where this one keeps a worker busy."""
        return new_head(self._authority, platform.node(), self._purpose)

    @contextmanager
    def roster(self, head: Head, tell: Callable[[Change], None], keep: Callable[[Hello], bool]) -> Iterator[Roster]:
        """A roster that is fed until the end; see `Roster`. Starts threads."""
        roster = Roster(head, tell, keep)
        for rank, peer in enumerate(dict.fromkeys(self._peers)):
            roster.add(Candidate(peer, (peer,), Found.PEER, rank))
        browser = Browser(
            [self._authority.network],
            lambda sighting: roster.add(_announced(sighting)),
            lambda sighting: roster.remove(sighting.instance),
            interfaces=self._options.interface,
            enabled=not self._options.no_mdns,
        )
        browser.start()
        try:
            yield roster
        finally:
            browser.close()
            roster.close("the head has ended")


def refused(failures: Sequence[Failure]) -> WorkerError | None:
    """The error for when there is no worker, and every candidate that there is refused the token; else None."""
    if not failures or any(failure.error.problem is not Problem.REFUSED for failure in failures):
        return None
    return WorkerError(
        f"token refused by {_named([str(failure.candidate.addresses[0]) for failure in failures])}",
        "use the token, and the network id, that the workers have",
        ExitCode.REFUSED,
    )


def not_found(what: str, causes: Sequence[str], failures: Sequence[Failure], hint: str = "") -> WorkerError:
    """The error for when there are too few workers: `what`, and why, worker by worker."""
    failed = [f"{failure.candidate.addresses[0]} {failure.error}" for failure in failures]
    reasons = _named([*causes, *failed], "; ")
    return WorkerError(
        f"{what}: {reasons}" if reasons else what,
        hint
        or "does `worker p2p-llama-cpp-rpc` run with the same token? "
        "where multicast does not pass, name workers with --peer HOST:PORT",
        ExitCode.NOT_FOUND,
    )


def _announced(sighting: Sighting) -> Candidate:
    addresses = tuple(Address(host, sighting.port) for host in sighting.addresses)
    return Candidate(sighting.instance, addresses, Found.MDNS, worker_id=sighting.worker_id)


def _named(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - _MAX_NAMED
    return separator.join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
