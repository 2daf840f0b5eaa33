"""A run's report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..runs.traffic import CHANNEL_KINDS
from .communication import Line, Volume
from .links import NETWORK_JOULE_PER_BYTE, NETWORK_SOURCE
from .run_report import WAYS, RunReport, Window
from .tables import SIZE_COLUMNS, cells, compression_table, plain_table, sockets_told
from .units import ARROWS, energy, size, span

if TYPE_CHECKING:
    from rich.table import Table

#: Most rows of rounds, and of nodes, that a terminal is given.
_ROUNDS, _NODES = 20, 10


def report_tables(report: RunReport) -> Iterator[Table]:
    """Every table of the report, one by one.

    What was sent (by kind, direction and encoding), when, by whom, against which baselines, what a score cost, and how
    long it would take on links that people have.
    """
    yield _kinds(report)
    yield _windows(report)
    if len(report.communication.by_node) > 1:
        yield _talkers(report)
    if report.compressions:
        yield compression_table(report.compressions)
    if report.targets:
        yield _targets(report)
    yield _links(report)


def _kinds(report: RunReport) -> Table:
    table = plain_table("What was sent", left=("kind", "direction", "encoding"), right=SIZE_COLUMNS)
    rows = report.account.by("kind", "direction", "encoding")
    for row in sorted(rows, key=lambda row: (row["kind"] in CHANNEL_KINDS, -row["frame_bytes"])):
        if row["kind"] not in CHANNEL_KINDS:
            table.add_row(row["kind"], ARROWS[row["direction"]], row["encoding"], *cells(_volume(row)))
    table.add_section()
    volume = report.communication
    for line in volume.by_direction:
        table.add_row("all", ARROWS[line.direction], "", *cells(line.volume))
    table.add_row("all", "all", "", *cells(volume.total), style="bold")
    for name, part in (("sent again after a restart", volume.repeated), ("the channels' own", volume.channel)):
        if part.frames:
            table.add_row(f"of which {name}", "", "", *cells(part))
    table.caption = sockets_told(volume)
    return table


def _windows(report: RunReport) -> Table:
    kinds = sorted({kind for window in report.windows for kind in window.payload_by_kind})
    ways = [way for way in WAYS if way != "peer" or any(window.peer.frames for window in report.windows)]
    table = plain_table(
        f"By {report.unit} (payload, each message once)",
        left=(report.unit,),
        right=(*kinds, *(ARROWS[way] for way in ways), "frames with headers"),
    )
    for label, windows in _put_together(report.windows):
        sums = [sum((getattr(w, way) for w in windows), Volume()) for way in ways]
        by_kind = [sum(w.payload_by_kind.get(kind, 0) for w in windows) for kind in kinds]
        sizes = (*by_kind, *(side.payload_bytes for side in sums), sum(side.frame_bytes for side in sums))
        table.add_row(label, *map(size, sizes))
    return table


def _put_together(windows: tuple[Window, ...]) -> Iterator[tuple[str, tuple[Window, ...]]]:
    width = -(-len(windows) // _ROUNDS) or 1
    for start in range(0, len(windows), width):
        some = windows[start : start + width]
        first, last = some[0].label.split("-")[0], some[-1].label.split("-")[-1]
        yield (first if first == last else f"{first}-{last}"), some


def _talkers(report: RunReport) -> Table:
    lines = sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)
    table = plain_table("Who sent and was sent most", left=("node",), right=(*SIZE_COLUMNS, "of all"))
    total = report.communication.total.frame_bytes or 1
    for line in lines[:_NODES]:
        table.add_row(line.node, *cells(line.volume), f"{100 * line.volume.frame_bytes / total:.1f} %")
    if rest := lines[_NODES:]:
        table.add_row(f"{len(rest)} others", *cells(_sum(rest)), f"{100 * _sum(rest).frame_bytes / total:.1f} %")
    return table


def _targets(report: RunReport) -> Table:
    table = plain_table(f"What {report.score} cost", left=(report.score,), right=(report.unit, "payload until then"))
    for target in report.targets:
        reached = ("–", "not reached") if target.round is None else (str(target.round), size(target.payload_bytes or 0))
        table.add_row(f"{target.score:g}", *reached)
    return table


def _links(report: RunReport) -> Table:
    table = plain_table(
        "How long the transfers would take, every node on such a link",
        left=("link", "down / up", "source"),
        right=("time", "radio energy"),
    )
    for item in report.links:
        link = item.link.profile
        time = ("≥ " if item.at_least else "") + span(item.seconds)
        speed = f"{link.down_mbps:g} / {link.up_mbps:g} Mbit/s"
        table.add_row(item.link.name, speed, item.link.source, time, "–" if item.joule is None else energy(item.joule))
    network = report.communication.total.frame_bytes * NETWORK_JOULE_PER_BYTE
    table.caption = f"in fixed-line networks {energy(network)} ({NETWORK_SOURCE})"
    table.caption_justify = "left"
    return table


def _volume(row: dict[str, int]) -> Volume:
    return Volume(row["frames"], row["dense_bytes"], row["payload_bytes"], row["frame_bytes"])


def _sum(lines: list[Line]) -> Volume:
    return sum((line.volume for line in lines), Volume())
