"""Tables and progress for people; plain text where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from io import StringIO
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def made(
    titles: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Collection[str] = (), caption: str | None = None
) -> Table:
    """A table; numbers, and the columns that `right` names, stand to the right; None is a dash. No text is read as markup."""
    grid = Table(box=None, pad_edge=False, header_style="bold", show_header=any(titles), caption=caption, caption_justify="left")
    for index, title in enumerate(titles):
        number = title in right or any(isinstance(row[index], int | float) for row in rows)
        grid.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    return grid


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table to standard output; nothing if it has no rows. Where there is no terminal, lines are as long as they are."""
    if not rows:
        return
    if sys.stdout.isatty():
        Console(highlight=False).print(made(titles, rows))
        return
    text = StringIO()
    Console(file=text, width=10_000).print(made(titles, rows))
    for line in text.getvalue().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def plural(number: int, noun: str) -> str:
    """1 job, 2 jobs."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class Bar:
    """Progress on standard error, if that is a terminal that can draw over it.

    Args:
        what: What goes on.
        total: How many there are; None if nobody knows.
    """

    def __init__(self, what: str, total: int | None) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        disable = not sys.stderr.isatty() or console.is_dumb_terminal  # which cannot draw over a line
        self._progress = Progress(*columns, console=console, disable=disable, transient=True)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, done: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
