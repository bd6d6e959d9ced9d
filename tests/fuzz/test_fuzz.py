"""Goal: whatever bytes come from outside, the program answers with a value or the error that it documents."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.target import Target
from tests.fuzz.targets import FOUND, TARGETS

EXAMPLES = 200
MAX_EDITS = 6
MAX_INSERT = 64


def mutated(seeds: list[bytes]) -> SearchStrategy[bytes]:
    """Valid inputs with some pieces cut out, put in or written over; and plain noise."""
    edit = st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=MAX_INSERT))

    def apply(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for where, cut, put in edits:
            at = int(where * len(seed))
            seed = seed[:at] + put + seed[at + cut :]
        return seed

    return st.builds(apply, st.sampled_from(seeds), st.lists(edit, max_size=MAX_EDITS)) | st.binary(max_size=512)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_a_value_or_a_documented_error(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds))
    def run(data: bytes) -> None:
        target(data)

    for data in (b"", *seeds, *FOUND.get(name, ())):
        run = example(data)(run)
    run()


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"impostor"}))  # which nothing can pass
def test_a_seed_is_taken(name: str) -> None:
    """Else no mutation of it would get past the first check."""
    target = TARGETS[name]
    assert any(target(seed) for seed in target.seeds())


def test_every_regression_has_a_target() -> None:
    assert set(FOUND) <= set(TARGETS)


def _log_a_traceback(_: bytes) -> bool:
    try:
        raise KeyError
    except KeyError:
        logging.getLogger("app.somewhere").exception("it broke")
    return True


def _break_a_thread(_: bytes) -> bool:
    def run() -> None:
        raise KeyError

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return True


@pytest.mark.parametrize("read", [_log_a_traceback, _break_a_thread])
def test_what_is_only_logged_or_ends_a_thread_is_a_finding(read: Callable[[bytes], bool]) -> None:
    with pytest.raises(AssertionError, match="traceback"):
        Target(read, list)(b"")
