"""Goal: the log goes to stderr from the chosen level on; an error is two lines; a table suits its stream."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable
from typing import TextIO

import pytest

from app import console
from app.options import LOG_LEVELS


@pytest.mark.parametrize("level", LOG_LEVELS[:4])
def test_each_level_shows_itself_and_what_is_worse(level: str) -> None:
    stream = io.StringIO()
    console.start_logging(level, stream)
    numbers = [logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG]
    for name, number in zip(LOG_LEVELS[:4], numbers, strict=True):
        logging.getLogger("test").log(number, "said at %s", name)
    shown = LOG_LEVELS[: LOG_LEVELS.index(level) + 1]
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == list(shown)


def test_an_error_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error("it broke", "mend it")
    console.print_error("it broke", "")
    assert capsys.readouterr() == ("", "error: it broke\nhint: mend it\nerror: it broke\n")


TABLE = console.Table(("name", "device"), (("[red]box", "CUDA0\nCPU"), ("a", "CPU")))


def test_a_table_is_aligned_where_no_terminal_is() -> None:
    stream = io.StringIO()
    console.print_table(TABLE, stream)
    assert stream.getvalue().splitlines() == ["name      device", "[red]box  CUDA0", "          CPU", "a         CPU"]


def on_a_terminal(draw: Callable[[TextIO], None]) -> str:
    """What `draw` puts on a terminal."""
    reading, writing = os.openpty()
    with os.fdopen(writing, "w") as stream:
        draw(stream)
    seen = b""
    with contextlib.suppress(OSError):  # EIO is how a terminal says that its other side has gone
        while block := os.read(reading, 1 << 16):
            seen += block
    os.close(reading)
    return seen.decode()


def test_a_table_on_a_terminal_takes_names_as_they_are() -> None:
    seen = on_a_terminal(lambda stream: console.print_table(TABLE, stream))
    assert "[red]box" in seen
    assert "CUDA0" in seen


def test_the_log_goes_above_a_live_table_and_back_to_where_it_was() -> None:
    def draw(stream: TextIO) -> None:
        console.start_logging("info", stream)
        with console.live_table(stream) as show:
            show(TABLE)
            logging.getLogger("test").info("found [bold]box")
            show(TABLE)
        logging.getLogger("test").info("afterwards")

    seen = on_a_terminal(draw)
    log, _, below = seen.partition("found [bold]box")
    assert below.count("CUDA0") >= 1, "the table is drawn again below the line"
    assert log.count("CUDA0") >= 1
    assert seen.rstrip().endswith("afterwards")
    console.start_logging("info")
