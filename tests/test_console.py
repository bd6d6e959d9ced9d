"""Goal: the log goes to stderr from the chosen level on; an error is one line and its remedy another."""

from __future__ import annotations

import io
import logging

import pytest

from app import console
from app.options import LOG_LEVELS


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_each_level_shows_itself_and_what_is_worse(level: str) -> None:
    stream = io.StringIO()
    console.start_logging(level, stream)
    numbers = [logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, console.TRACE]
    for name, number in zip(LOG_LEVELS, numbers, strict=True):
        logging.getLogger("test").log(number, "said at %s", name)
    shown = LOG_LEVELS[: LOG_LEVELS.index(level) + 1]
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == list(shown)


def test_an_error_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error("it broke", "mend it")
    console.print_error("it broke", "")
    assert capsys.readouterr() == ("", "error: it broke\nhint: mend it\nerror: it broke\n")
