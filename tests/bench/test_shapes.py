"""Goal: a record is kept without loss, and played in the pieces that llama.cpp writes."""

from __future__ import annotations

from pathlib import Path

from bench import shapes
from bench.shapes import Exchange, Request, Shapes
from bench.traffic import Turn, size

ASK = Exchange((Request("SET_TENSOR", 300), Request("GET_TENSOR", 12)), 400)
OTHER = Exchange((Request("HELLO", 24),), 28)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole = Shapes("a model", (OTHER, ASK), (ASK,))
    shapes.write(whole, tmp_path / "shapes.json")
    assert shapes.read(tmp_path / "shapes.json") == whole


def test_equal_neighbours_are_folded() -> None:
    assert shapes.fold([OTHER, ASK, ASK, OTHER]) == (OTHER, Exchange(ASK.requests, 400, 2), OTHER)


def test_a_message_is_written_as_command_size_and_body() -> None:
    assert shapes.script([ASK, OTHER]) == (Turn((1, 8, 300, 1, 8, 12), (8, 400)), Turn((1, 8, 24), (8, 28)))


def test_a_script_can_be_played_many_times() -> None:
    assert shapes.script([ASK], 5) == (Turn((1, 8, 300, 1, 8, 12), (8, 400), 5),)
    assert size(shapes.script([ASK, OTHER], 5)) == (5 * (330 + 33), 5 * (408 + 36))


def test_the_committed_record_is_one_of_loading_and_generating() -> None:
    kept = shapes.read()
    commands = {request.command for exchange in kept.load for request in exchange.requests}
    assert {"HELLO", "ALLOC_BUFFER", "SET_TENSOR"} <= commands
    assert any(request.command.startswith("GRAPH_") for exchange in kept.token for request in exchange.requests)
