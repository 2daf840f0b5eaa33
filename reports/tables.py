"""Communication reports as people read them in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .communication import CommunicationReport, Row

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DIRECTIONS = {"up": "uplink", "down": "downlink"}


def size(count: float) -> str:
    """Bytes with a unit, steps of 1000: ``999 B``, ``1.23 kB``, ``45.6 MB``, ``789 GB``."""
    value, unit = float(count), 0
    # 999.5 would be written as "1000", which is the next unit's 1.00.
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{value:.0f} B"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {_UNITS[unit]}"


def ratio(value: float | None) -> str:
    """A ratio: ``96.0×``, ``1,536×``; ``–`` where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}×" if value >= 999.95 else f"{value:.1f}×" if value >= 9.995 else f"{value:.2f}×"


def communication_table(report: CommunicationReport) -> Table:
    """One line per node, direction and kind; below them uplink, downlink and everything."""
    from rich.table import Table

    table = Table(title="communication", title_justify="left", show_edge=False)
    for name in ("node", "direction", "kind"):
        table.add_column(name)
    for name in ("frames", "dense →", "payload →", "frame", "dense : payload"):
        table.add_column(name, justify="right")
    rows = report.by("node", "direction", "kind")
    for index, row in enumerate(rows):
        last = index + 1 == len(rows)
        table.add_row(*_cells(row), end_section=last or rows[index + 1].node != row.node)
    for row in (*report.by("direction"), report.total):
        table.add_row(*_cells(row), style="bold")
    return table


def compression_lines(report: CommunicationReport) -> list[str]:
    """One line per baseline, and the socket bytes where somebody measured them."""
    payload = report.total.payload_bytes
    lines = [
        f"compression against {name}: {ratio(report.compression[name])} ({size(baseline)} / {size(payload)} payload)"
        for name, baseline in report.baselines.items()
    ]
    if report.socket_bytes:
        parts = [f"{_DIRECTIONS.get(d, d)} {size(count)}" for d, count in report.socket_bytes.items()]
        total, frames = sum(report.socket_bytes.values()), report.total.frame_bytes
        over = f", {100 * (total / frames - 1):+.1f} % over the frames" if frames else ""
        lines.append(f"sockets (HTTP/2, TLS and TCP included): {', '.join(parts)}, together {size(total)}{over}")
    return lines


def communication(report: CommunicationReport) -> Group:
    """The table and the lines under it."""
    from rich.console import Group
    from rich.text import Text

    return Group(communication_table(report), *map(Text, compression_lines(report)))


def _cells(row: Row) -> tuple[str, ...]:
    sizes = (size(row.dense_bytes), size(row.payload_bytes), size(row.frame_bytes))
    names = (row.node or "all", _DIRECTIONS.get(row.direction, row.direction) or "both", row.kind or "all")
    return (*names, f"{row.frames:,}", *sizes, ratio(row.ratio))
