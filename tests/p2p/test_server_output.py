"""Goal: every line that the server prints is passed on as it comes, and the last ones can be asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from app.p2p.server_output import KEPT_LINES, MAX_LINE, ServerOutput

HANG_GUARD = 20.0

Printer = Callable[[bytes], object]


@pytest.fixture
def pipe() -> Iterator[tuple[int, Printer, Callable[[], None]]]:
    """The read end, a way to print, and a way to end."""
    reading, writing = os.pipe()
    ends = [writing]

    def end() -> None:
        for descriptor in ends:
            os.close(descriptor)
        ends.clear()

    yield reading, lambda data: os.write(writing, data), end
    end()


def test_lines_are_passed_on_before_the_end(pipe: tuple[int, Printer, Callable[[], None]]) -> None:
    reading, write, end = pipe
    seen: list[str] = []
    output = ServerOutput(reading, seen.append)

    write(b"one\ntwo\r\nthr")
    assert output.wait_until(lambda lines: len(lines) == 2, HANG_GUARD) == ["one", "two"]
    write(b"ee")
    end()

    assert output.wait_for_end(HANG_GUARD) == seen == ["one", "two", "three"]


def test_a_wait_for_what_never_comes_ends(pipe: tuple[int, Printer, Callable[[], None]]) -> None:
    reading, write, end = pipe
    output = ServerOutput(reading, lambda line: None)
    write(b"one\n")

    output.wait_until(bool, HANG_GUARD)
    assert output.wait_until(lambda lines: False, 0.01) == ["one"]
    assert output.wait_for_end(0.01) == ["one"]

    end()
    output.wait_for_end(HANG_GUARD)


def test_what_is_kept_is_bounded(pipe: tuple[int, Printer, Callable[[], None]]) -> None:
    reading, write, end = pipe
    seen: list[str] = []
    output = ServerOutput(reading, seen.append)

    for number in range(2 * KEPT_LINES):
        write(b"%d\n" % number)
    write(b"x" * (MAX_LINE + 1) + b"\n")
    end()

    kept = output.wait_for_end(HANG_GUARD)
    assert len(kept) == KEPT_LINES
    assert kept[-2:] == ["x" * MAX_LINE, "x"]
    assert len(seen) == 2 * KEPT_LINES + 2


def test_nothing_printed_can_steer_a_terminal(pipe: tuple[int, Printer, Callable[[], None]]) -> None:
    reading, write, end = pipe
    output = ServerOutput(reading, lambda line: None)

    write("tab\tumlaut \u00fc\n\x1b[2J \u202e \x9b1m\n".encode() + b"\xff\xfe\n")
    end()

    lines = output.wait_for_end(HANG_GUARD)
    assert lines[0] == "tab\tumlaut \u00fc"
    assert lines[1] == "\ufffd[2J \ufffd \ufffd1m"
    assert lines[2] == "\ufffd\ufffd"


@pytest.mark.parametrize("failure", [BrokenPipeError, ValueError])
def test_a_reader_that_is_gone_does_not_stop_the_server(
    pipe: tuple[int, Printer, Callable[[], None]], failure: type[Exception]
) -> None:
    reading, write, end = pipe

    def broken(line: str) -> None:
        raise failure

    output = ServerOutput(reading, broken)
    for _ in range(100):
        write(b"x" * 4000 + b"\n")  # far more than the pipe holds
    end()

    assert len(output.wait_for_end(HANG_GUARD)) == 100
