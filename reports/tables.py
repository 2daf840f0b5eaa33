"""Tables of communication volume and compression for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.text import printable
from ..runs.traffic import CHANNEL_KINDS
from .communication import CommunicationReport, Compression, Volume
from .units import ARROWS, ratio, share, size

if TYPE_CHECKING:
    from rich.table import Table

#: Columns that :func:`cells` fills.
SIZE_COLUMNS = ("frames", "dense", "payload", "frame", "ratio", "overhead")


def communication_table(report: CommunicationReport, title: str = "Communication") -> Table:
    """Build the table of frames and dense, payload and frame bytes by node, direction and kind.

    Below: totals by direction, messages resent after a restart, channel overhead, and bytes on the sockets.

    Parameters
    ----------
    report : CommunicationReport
    title : str

    Returns
    -------
    rich.table.Table
        Print it with ``rich.console.Console().print``.
    """
    table = plain_table(title, left=("node", "direction", "kind"), right=SIZE_COLUMNS)
    for line in report.lines:
        if line.kind not in CHANNEL_KINDS:  # shown as one sum below
            table.add_row(line.node, ARROWS[line.direction], line.kind, *cells(line.volume))
    table.add_section()
    for line in report.by_direction:
        table.add_row("all", ARROWS[line.direction], "all", *cells(line.volume))
    table.add_row("all", "all", "all", *cells(report.total), style="bold")
    parts = (("resent after a restart", report.repeated), ("channel overhead", report.channel))
    for name, volume in parts:
        if volume.frames:
            table.add_row("", "", f"of which {name}", *cells(volume))
    table.caption = socket_note(report)
    table.caption_justify = "left"
    return table


def compression_table(compressions: Sequence[Compression], title: str = "Compression") -> Table:
    """Build the table of compressions: bytes of the baseline, payload bytes and ratio, one row per baseline."""
    table = plain_table(title, left=("against", "counted"), right=("baseline", "payload", "compression"))
    for item in compressions:
        counted = ", ".join(item.kinds) or "all messages of the method"
        table.add_row(item.baseline, counted, size(item.baseline_bytes), size(item.payload_bytes), ratio(item.ratio))
    table.caption = "dense bytes of the baseline / payload bytes with side data; resent messages count once"
    table.caption_justify = "left"
    return table


def plain_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Create a borderless table; ``left`` columns are left-aligned, ``right`` columns right-aligned.

    Cells are text, not markup, and control characters in them are shown as escapes: kinds and names come from peers.
    """
    from rich.table import Table
    from rich.text import Text

    class TextTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*(Text(printable(str(cell), lines=False)) for cell in cells), **options)

    table = TextTable(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def cells(volume: Volume) -> tuple[str, ...]:
    """Format a volume for the columns :data:`SIZE_COLUMNS`."""
    sizes = (size(volume.dense_bytes), size(volume.payload_bytes), size(volume.frame_bytes))
    return (f"{volume.frames:,}", *sizes, ratio(volume.ratio), share(volume.overhead))


def socket_note(report: CommunicationReport) -> str:
    """Format the bytes on the sockets, or state that they were not measured."""
    sockets = report.socket_bytes
    if not sockets:
        return "socket bytes (HTTP/2, TLS) were not measured"
    parts = ", ".join(f"{size(sockets[name])} {name}" for name in ("up", "down") if name in sockets)
    return f"socket bytes, including HTTP/2 and TLS: {parts}"
