"""The communication report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runs.traffic import CHANNEL_KINDS
from .communication import CommunicationReport, Compression, Line, Volume
from .units import ratio, share, size

if TYPE_CHECKING:
    from rich.table import Table


def communication_table(report: CommunicationReport, title: str = "Communication") -> Table:
    """Every node, direction and kind of the method: frames, dense → payload → frame bytes; below, totals of all frames,
    what the channels added of their own, and the sockets' bytes beside.

    Parameters
    ----------
    report : CommunicationReport
    title : str

    Returns
    -------
    rich.table.Table
        Print it with ``rich.console.Console().print``.
    """
    table = _table(title, left=("node", "direction", "kind"), right=("frames", *_SIZES, "ratio", "overhead"))
    for line in report.lines:
        if line.kind not in CHANNEL_KINDS:  # many small rows; their sum stands below
            table.add_row(line.node, _arrow(line), line.kind, *_cells(line.volume))
    table.add_section()
    for line in report.by_direction:
        table.add_row("all", _arrow(line), "all", *_cells(line.volume))
    table.add_row("all", "both", "all", *_cells(report.total), style="bold")
    parts = (("sent again after a restart", report.repeated), ("the channels' own", report.channel))
    for name, volume in parts:
        if volume.frames:
            table.add_row("", "", f"of which {name}", *_cells(volume))
    table.caption = _caption(report)
    table.caption_justify = "left"
    return table


def compression_table(compressions: Sequence[Compression], title: str = "Compression") -> Table:
    """One row per baseline: what it would have sent, what was sent, and the ratio."""
    table = _table(title, left=("against", "counted"), right=("baseline", "payload", "compression"))
    for item in compressions:
        counted = ", ".join(item.kinds) or "every message of the method"
        table.add_row(item.baseline, counted, size(item.baseline_bytes), size(item.payload_bytes), ratio(item.ratio))
    table.caption = "dense bytes of the baseline / payload bytes, side data included; what a restart sent again once"
    table.caption_justify = "left"
    return table


_SIZES = ("dense", "payload", "frame")


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(volume: Volume) -> tuple[str, ...]:
    sizes = (size(volume.dense_bytes), size(volume.payload_bytes), size(volume.frame_bytes))
    return (f"{volume.frames:,}", *sizes, ratio(volume.ratio), share(volume.overhead))


def _arrow(line: Line) -> str:
    return "↑ up" if line.direction == "up" else "↓ down"


def _caption(report: CommunicationReport) -> str:
    sockets = report.socket_bytes
    if not sockets:
        return "socket bytes (HTTP/2, TLS) were not measured"
    parts = ", ".join(f"{size(sockets[name])} {name}" for name in ("up", "down") if name in sockets)
    return f"on the sockets, HTTP/2 and TLS included: {parts}"
