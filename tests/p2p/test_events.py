"""Goal: the main thread hears what matters, in order, whatever else is said, and in time."""

from __future__ import annotations

import signal
from dataclasses import replace

from app.p2p.dialer import Found
from app.p2p.events import Events
from app.p2p.frames import Hello
from app.p2p.link import Address
from app.p2p.roster import Change, News, Worker
from app.p2p.signals import Arrived
from tests.p2p.fake_worker import BUSY, READY

ADDRESS = Address("10.0.0.1", 25052)
HELLO = Hello(1, "id-1", "box-1", "0.1.0", "", "", "", READY)
WORKER = Worker(0, "id-1", "key", HELLO, READY, 100.0, ADDRESS, (ADDRESS,), Found.MDNS, 0, there=True)
STOP = Arrived(signal.SIGTERM, by_terminal=False)


def changed(news: News, since: int = 0, place: int = 0) -> Change:
    return Change(news, replace(WORKER, place=place, status=replace(BUSY, since=since)))


def taken(events: Events) -> list[object]:
    """All that there is."""
    return list(iter(lambda: events.next(0.01), None))


def test_of_a_workers_statuses_the_newest_is_kept_and_nothing_else_is_lost() -> None:
    events = Events()
    lasting = [changed(News.FOUND), changed(News.LOST), changed(News.BACK), changed(News.LOST), "what else there is"]
    for number in range(1000):
        events.put(changed(News.CHANGED, number))
        events.put(Change(News.TRIED))
    for event in lasting:
        events.put(event)
    events.put(changed(News.CHANGED, 7, place=1))
    events.put(changed(News.CHANGED, 8))
    assert taken(events) == [Change(News.TRIED), *lasting, changed(News.CHANGED, 7, place=1), changed(News.CHANGED, 8)]


def test_a_signal_comes_first() -> None:
    events = Events()
    events.put(changed(News.FOUND))
    events.put(STOP)
    events.put(changed(News.CHANGED))
    assert taken(events) == [STOP, changed(News.FOUND), changed(News.CHANGED)]


def test_events_that_never_end_do_not_hide_that_the_time_is_over() -> None:
    events = Events()
    events.put(changed(News.FOUND))
    assert events.next(0.0) is None
    assert events.next(None) == changed(News.FOUND)
