"""How commands speak: JSON for machines, tables and plain lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

#: The option that every reporting command has.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(text: str) -> None:
    """Print a line for people."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line beside the result: to standard error, so that the output stays clean for pipes."""
    typer.echo(text, err=True)


def emit(value: Any) -> None:
    """Print one JSON value on one line."""
    typer.echo(json.dumps(value, default=str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table under ``title`` (if that is not empty), or say ``empty`` where there are none."""
    listed = [[str(cell) for cell in row] for row in rows]
    if not listed:
        say(empty)
        return
    if title:
        say(title)
    if not sys.stdout.isatty():
        # Pipes and files get columns padded with blanks: no box characters, nothing cut off.
        widths = [max(len(row[i]) for row in [list(columns), *listed]) for i in range(len(columns))]
        for row in [list(columns), *listed]:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in listed:
        shown.add_row(*row)
    Console().print(shown)


def amount(number: float) -> str:
    """Bytes for people: ``12.3 MB`` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


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
