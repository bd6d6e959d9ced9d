"""Goal: what ends again and again waits longer and longer, up to a limit, and starts afresh once it was well."""

from __future__ import annotations

from app.p2p.backoff import MAX_DELAY, STEADY, Backoff


def test_it_doubles_up_to_the_limit() -> None:
    backoff = Backoff(1.0)
    assert [backoff.after(None) for _ in range(7)] == [1, 2, 4, 8, 16, MAX_DELAY, MAX_DELAY]


def test_a_while_of_being_well_makes_it_short_again() -> None:
    backoff = Backoff(0.25)
    assert [backoff.after(None), backoff.after(STEADY - 1), backoff.after(STEADY), backoff.after(0)] == [
        0.25, 0.5, 0.25, 0.5,
    ]  # fmt: skip
