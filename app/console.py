"""What the user sees: the log, the two lines of an error, tables."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # it takes a tenth of a second, so who draws imports it
    from rich.console import Console
    from rich.table import Table as RichTable

_LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,  # the original has it; there is nothing below debug
}


def start_logging(level: str, stream: TextIO | None = None) -> None:
    """Send the log to `stream` (default: stderr) from `level` of `options.LOG_LEVELS` on.

    stdout stays free for what a program reads.
    """
    logging.addLevelName(logging.WARNING, "WARN")
    logging.basicConfig(
        level=_LEVELS[level],
        format="%(asctime)s %(levelname)-5s %(message)s",
        datefmt="%H:%M:%S",
        stream=stream or sys.stderr,
        force=True,
    )


def print_error(message: str, hint: str) -> None:
    """`error: ...` and, where there is a remedy, `hint: ...`; at one go, because other threads may be logging."""
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))


def printable(line: str) -> str:
    """Without what could steer a terminal: others made the text, such as a head or a model's author."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells; a cell may have several lines."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_table(table: Table, stream: TextIO) -> None:
    """Draw `table` on a terminal; elsewhere align its columns, for grep and awk."""
    if stream.isatty():
        _console(stream).print(_draw(table))
    else:
        print_plain(table, stream)


def print_plain(table: Table, stream: TextIO) -> None:
    """Align the columns of `table`, wherever `stream` leads; the small build has nothing that draws."""
    lines = [line for row in (table.headings, *table.rows) for line in _lines(row)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip(), file=stream)


@contextmanager
def live_table(stream: TextIO) -> Iterator[Callable[[Table], None]]:
    """On the terminal `stream`, a table that is drawn anew with each call of what is yielded; the log goes above it."""
    from rich.file_proxy import FileProxy
    from rich.live import Live

    console = _console(stream)
    handlers = [
        (handler, handler.stream)
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
    ]
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        for handler, _ in handlers:
            handler.setStream(FileProxy(console, stream))
        try:
            yield lambda table: live.update(_draw(table), refresh=True)
        finally:
            for handler, before in handlers:
                handler.setStream(before)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False)


def _draw(table: Table) -> RichTable:
    from rich.box import SIMPLE
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(*table.headings, box=SIMPLE, pad_edge=False)
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # not markup: names come from other machines
    return drawn


def _lines(row: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The lines of one row, as many as its highest cell has."""
    cells = [cell.split("\n") for cell in row]
    height = max(map(len, cells))
    return [tuple(cell[at] if at < len(cell) else "" for cell in cells) for at in range(height)]
