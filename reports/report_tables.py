"""The tables of a run's report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..runs.traffic import CHANNEL_KINDS
from .communication import Line, Volume
from .links import NETWORK_JOULE_PER_BYTE, NETWORK_SOURCE
from .run_report import DIRECTIONS, RunReport, Window
from .tables import SIZE_COLUMNS, cells, compression_table, plain_table, socket_note
from .units import ARROWS, energy, size, span

if TYPE_CHECKING:
    from rich.table import Table

#: Maximum number of rows in the tables by round and by node.
_MAX_ROUNDS, _MAX_NODES = 20, 10


def report_tables(report: RunReport) -> Iterator[Table]:
    """Yield the tables of a report.

    Traffic by kind, direction and encoding; by round or step; by node; compression against baselines; payload to reach
    the target scores; estimated time on typical links.
    """
    yield _kinds(report)
    yield _windows(report)
    if len(report.communication.by_node) > 1:
        yield _top_talkers(report)
    if report.compressions:
        yield compression_table(report.compressions)
    if report.targets:
        yield _targets(report)
    yield _links(report)


def _kinds(report: RunReport) -> Table:
    table = plain_table("By kind", left=("kind", "direction", "encoding"), right=SIZE_COLUMNS)
    rows = report.account.by("kind", "direction", "encoding")
    for row in sorted(rows, key=lambda row: (row["kind"] in CHANNEL_KINDS, -row["frame_bytes"])):
        if row["kind"] not in CHANNEL_KINDS:
            table.add_row(row["kind"], ARROWS[row["direction"]], row["encoding"], *cells(_volume(row)))
    table.add_section()
    volume = report.communication
    for line in volume.by_direction:
        table.add_row("all", ARROWS[line.direction], "", *cells(line.volume))
    table.add_row("all", "all", "", *cells(volume.total), style="bold")
    for name, part in (("resent after a restart", volume.repeated), ("channel overhead", volume.channel)):
        if part.frames:
            table.add_row(f"of which {name}", "", "", *cells(part))
    table.caption = socket_note(volume)
    return table


def _windows(report: RunReport) -> Table:
    kinds = sorted({kind for window in report.windows for kind in window.payload_by_kind})
    has_peers = any(window.peer.frames for window in report.windows)
    directions = [name for name in DIRECTIONS if name != "peer" or has_peers]
    table = plain_table(
        f"By {report.unit} (payload, each message counted once)",
        left=(report.unit,),
        right=(*kinds, *(ARROWS[name] for name in directions), "frame bytes"),
    )
    for label, windows in _merged(report.windows):
        sums = [sum((getattr(w, name) for w in windows), Volume()) for name in directions]
        by_kind = [sum(w.payload_by_kind.get(kind, 0) for w in windows) for kind in kinds]
        sizes = (*by_kind, *(volume.payload_bytes for volume in sums), sum(volume.frame_bytes for volume in sums))
        table.add_row(label, *map(size, sizes))
    return table


def _merged(windows: tuple[Window, ...]) -> Iterator[tuple[str, tuple[Window, ...]]]:
    width = -(-len(windows) // _MAX_ROUNDS) or 1
    for start in range(0, len(windows), width):
        group = windows[start : start + width]
        first, last = group[0].label.split("-")[0], group[-1].label.split("-")[-1]
        yield (first if first == last else f"{first}-{last}"), group


def _top_talkers(report: RunReport) -> Table:
    lines = sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)
    table = plain_table("Top talkers", left=("node",), right=(*SIZE_COLUMNS, "share"))
    total = report.communication.total.frame_bytes or 1
    for line in lines[:_MAX_NODES]:
        table.add_row(line.node, *cells(line.volume), f"{100 * line.volume.frame_bytes / total:.1f} %")
    if rest := lines[_MAX_NODES:]:
        table.add_row(f"{len(rest)} others", *cells(_sum(rest)), f"{100 * _sum(rest).frame_bytes / total:.1f} %")
    return table


def _targets(report: RunReport) -> Table:
    table = plain_table(
        f"Payload to reach {report.score}", left=(report.score,), right=(report.unit, "cumulative payload")
    )
    for target in report.targets:
        reached = ("–", "not reached") if target.round is None else (str(target.round), size(target.payload_bytes or 0))
        table.add_row(f"{target.score:g}", *reached)
    return table


def _links(report: RunReport) -> Table:
    table = plain_table(
        "Estimated transfer time on typical links (one link per node)",
        left=("link", "down / up", "source"),
        right=("time", "radio energy"),
    )
    for item in report.links:
        link = item.link.profile
        time = ("≥ " if item.at_least else "") + span(item.seconds)
        speed = f"{link.down_mbps:g} / {link.up_mbps:g} Mbit/s"
        table.add_row(item.link.name, speed, item.link.source, time, "–" if item.joule is None else energy(item.joule))
    network = report.communication.total.frame_bytes * NETWORK_JOULE_PER_BYTE
    table.caption = f"energy of fixed-line networks: {energy(network)} ({NETWORK_SOURCE})"
    table.caption_justify = "left"
    return table


def _volume(row: dict[str, int]) -> Volume:
    return Volume(row["frames"], row["dense_bytes"], row["payload_bytes"], row["frame_bytes"])


def _sum(lines: list[Line]) -> Volume:
    return sum((line.volume for line in lines), Volume())
