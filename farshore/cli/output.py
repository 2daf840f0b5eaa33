"""How commands speak: JSON for machines, tables and plain lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

#: The option that every reporting command has.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


_WIDE = 160


def say(text: str) -> None:
    """Print a line for people."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line beside the result: to standard error, so that the output stays clean for pipes."""
    typer.echo(text, err=True)


def emit(value: Any) -> None:
    """Print one JSON value on one line."""
    typer.echo(json.dumps(value, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table, or say ``empty`` where there are none."""
    listed = [[str(cell) for cell in row] for row in rows]
    if not listed:
        say(empty)
        return
    if not sys.stdout.isatty():
        # Pipes and files get columns padded with blanks: no box characters, nothing cut off.
        widths = [max(len(row[i]) for row in [list(columns), *listed]) for i in range(len(columns))]
        for row in [list(columns), *listed]:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.table import Table

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in listed:
        shown.add_row(*row)
    show(shown)


def show(shown: Table) -> None:
    """Print a finished table; pipes and files get it whole, however wide."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDE).print(shown)


def duration(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(seconds: float) -> str:
    """Seconds since 1970 as local time; a dash where there is none."""
    import datetime

    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "–"
