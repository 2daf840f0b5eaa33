"""Output of commands: lines and tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.json_text import to_json
from ..core.text import printable

if TYPE_CHECKING:
    from rich.table import Table

#: The option of every command that prints results.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


_PIPE_WIDTH = 160


def say(text: str) -> None:
    """Print a line, or several; control characters are shown as escapes."""
    typer.echo(printable(text))


def note(text: str) -> None:
    """Print a line to standard error, so that standard output holds the result only."""
    typer.echo(printable(text), err=True)


def emit(value: Any) -> None:
    """Print one JSON value on one line."""
    typer.echo(to_json(value, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table, or the line ``empty`` if there are none."""
    listed = [[printable(str(cell), lines=False) for cell in row] for row in rows]
    if not listed:
        say(empty)
        return
    if not sys.stdout.isatty():
        # Pipes and files get padded columns without box characters or truncation.
        widths = [max(len(row[i]) for row in [list(columns), *listed]) for i in range(len(columns))]
        for row in [list(columns), *listed]:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in listed:
        shown.add_row(*map(Text, row))  # text, not markup
    show(shown)


def show(shown: Table) -> None:
    """Print a rich table; not truncated to the terminal's width in pipes and files."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(shown)


def duration(seconds: float) -> str:
    """Format seconds as ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def local_time(seconds: float) -> str:
    """Format seconds since 1970 as local time; a dash for 0."""
    import datetime

    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "–"
