"""The `connect` and `list` commands: what a head does with the workers that it finds."""

from __future__ import annotations

import json
import os
import sys
import time

from app import onefile
from app.console import live_table, print_table
from app.errors import ExitCode, usage_error
from app.launch import leave_no_core, user_environment
from app.options import ConnectOptions, ListOptions
from app.p2p import signals
from app.p2p.command import Command
from app.p2p.events import Events
from app.p2p.frames import Purpose
from app.p2p.gathering import reach
from app.p2p.listing import Chronicle, as_json, failure_as_json, overview
from app.p2p.roster import Change, News, Roster
from app.p2p.search import Search, not_found, refused
from app.p2p.session import REDRAW, Session
from app.p2p.signals import Arrived


def connect(options: ConnectOptions, extra: list[str] | None) -> int:
    """Tunnels to the workers for as long as CMD runs, or until the user ends it. Raises WorkerError."""
    if extra == []:
        raise usage_error("there is no command after --", "leave -- away to get the line for --rpc")
    search = Search(options, Purpose.CONNECT)
    onefile.mark()
    mask = signals.block()
    command = Command(extra, user_environment(os.environ), mask) if extra else None  # no thread exists yet
    leave_no_core()  # ours only, not the command's
    with reach(search, options) as reached:
        return Session(options, reached, command).run()


def list_workers(options: ListOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """Show who is there. Raises WorkerError when nobody is."""
    search = Search(options, Purpose.LIST)
    onefile.mark()
    leave_no_core()
    signals.block()
    events = Events()
    signals.listen(events.put)
    with search.roster(search.head(), events.put, lambda _: options.watch) as roster:
        if options.watch:
            _watch(options, roster, events)
        else:
            _wait(options, roster, events)
            _show(options, roster)
        workers, failures = roster.workers(), roster.failures()
    if workers:
        return ExitCode.OK
    raise refused(failures) or not_found("no worker answered", [], failures)


def _wait(options: ListOptions, roster: Roster, events: Events) -> None:
    """Until the time is over, nobody is left to answer, or the user has seen enough."""
    deadline = time.monotonic() + options.timeout
    while (left := deadline - time.monotonic()) > 0 and not (options.no_mdns and roster.settled()):
        if _ends(events.next(left)):
            return


def _show(options: ListOptions, roster: Roster) -> None:
    workers, failures, now = roster.workers(), roster.failures(), time.monotonic()
    if options.json:
        rows = [as_json(worker, now) for worker in workers] + list(map(failure_as_json, failures))
        print(json.dumps(rows, indent=2))
    elif workers or failures:
        print_table(overview(workers, failures, now), sys.stdout)


def _watch(options: ListOptions, roster: Roster, events: Events) -> None:
    """Show what changes until the user ends it: a table on a terminal, else a line for each change."""
    if options.json:
        _watch_as_json(roster, events)
    elif sys.stdout.isatty():
        with live_table(sys.stdout) as show:
            while not _ends(events.next(REDRAW)):
                show(overview(roster.workers(), roster.failures(), time.monotonic()))
    else:
        chronicle = Chronicle()
        while not _ends(event := events.next(None)):
            if isinstance(event, Change) and (sentence := chronicle.sentence(event)):
                print(sentence, flush=True)


def _watch_as_json(roster: Roster, events: Events) -> None:
    told: set[tuple[object, str]] = set()
    while not _ends(event := events.next(None)):
        if not isinstance(event, Change):
            continue
        if event.worker is not None:
            print(json.dumps(as_json(event.worker, time.monotonic())), flush=True)
        elif event.news is News.TRIED:
            for failure in roster.failures():
                if (what := (failure.candidate.key, str(failure.error))) not in told:
                    told.add(what)
                    print(json.dumps(failure_as_json(failure)), flush=True)


def _ends(event: object) -> bool:
    return isinstance(event, Arrived) and event.ends
