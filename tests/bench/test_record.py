"""Goal: loading is told from generating, and one token from the next."""

from __future__ import annotations

import pytest

from bench.processes import BenchError
from bench.record import describe, loading, token
from bench.shapes import Exchange, Request

HELLO = Exchange((Request("HELLO", 24),), 28)
UPLOAD = Exchange((Request("SET_TENSOR", 1000), Request("GET_ALLOC_SIZE", 8)), 8)
FIRST = Exchange((Request("GRAPH_COMPUTE", 500), Request("GET_TENSOR", 12)), 400)
INPUT = Exchange((Request("GET_DEVICE_MEMORY", 4),), 16)
NEXT = Exchange((Request("GRAPH_RECOMPUTE", 4), Request("GET_TENSOR", 12)), 400)


def test_loading_ends_at_the_first_graph() -> None:
    assert loading([HELLO, UPLOAD, FIRST, NEXT]) == (HELLO, UPLOAD)


def test_a_token_is_what_comes_most_often_between_two_graphs() -> None:
    assert token([HELLO, UPLOAD, FIRST, INPUT, NEXT, INPUT, NEXT, NEXT]) == (INPUT, NEXT)


def test_a_run_without_generation_is_refused() -> None:
    with pytest.raises(BenchError, match="1 graphs"):
        token([HELLO, UPLOAD, FIRST])


def test_the_description_counts_what_is_folded() -> None:
    folded = Exchange(NEXT.requests, NEXT.answer, 3)
    assert describe([folded]) == (
        "3 round trips, 48 bytes up, 1200 down; 3 GET_TENSOR (36 bytes), 3 GRAPH_RECOMPUTE (12 bytes)"
    )
