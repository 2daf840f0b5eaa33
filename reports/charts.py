"""A run's charts as data: traces and layouts that Plotly's script draws, in a page or on the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .account import ONCE
from .units import ARROWS, size

if TYPE_CHECKING:
    from .run_report import RunReport

#: Told apart with every common kind of color vision (Okabe and Ito, 2008), on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")
#: Nodes that a heat map or a flow shows by name.
_HEAT_NODES, _FLOW_NODES = 60, 10


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes
    ----------
    name, title : str
        For links, and for people.
    told : str
        What it shows, in a sentence: for those who do not see it.
    traces, layout : JSON-able
        As Plotly takes them; colors of text and grid are the page's.
    """

    name: str
    title: str
    told: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; of names, Plotly's script shows signs that it would take for markup."""
        return {"name": self.name, "traces": _plain(self.traces), "layout": dict(self.layout)}


def charts(report: RunReport) -> list[Chart]:
    """Those that the run has data for."""
    if not report.windows:
        return []
    found = [_by_kind(report)]
    if report.curve is not None:
        found.append(_score_over_bytes(report))
    if len(report.communication.by_node) > 1:
        found.append(_heat(report))
    found.append(_flow(report))
    return found


def _by_kind(report: RunReport) -> Chart:
    kinds = sorted({kind for window in report.windows for kind in window.payload_by_kind})
    labels = [window.label for window in report.windows]
    traces = [
        {
            "type": "bar",
            "name": kind,
            "x": labels,
            "y": [window.payload_by_kind.get(kind, 0) for window in report.windows],
            "marker": {"color": color(place)},
            "hovertemplate": "%{y:.4s}B<extra>%{fullData.name}</extra>",
        }
        for place, kind in enumerate(kinds)
    ]
    layout = {
        "barmode": "stack",
        "hovermode": "x unified",
        "xaxis": {"title": {"text": report.unit}, "type": "category", "nticks": 12},
        "yaxis": {"title": {"text": "payload"}, "tickformat": ".3s", "ticksuffix": "B"},
    }
    total = size(report.communication.once.payload_bytes)
    told = f"Payload bytes of each {report.unit}, stacked by kind: {total} in all."
    return Chart("rounds", f"Bytes by {report.unit}", told, traces, layout)


def _score_over_bytes(report: RunReport) -> Chart:
    curve = report.curve
    assert curve is not None
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": report.score,
        "x": list(curve.payload),
        "y": list(curve.scores),
        "text": [f"{report.unit} {number}" for number in curve.rounds],
        "hovertemplate": "%{text}: %{y:.4f} after %{x:.4s}B<extra></extra>",
        "line": {"color": color(0)},
        "marker": {"size": 5},
    }
    layout = {
        "xaxis": {
            "title": {"text": "payload until then"},
            "tickformat": ".3s",
            "ticksuffix": "B",
            "rangemode": "tozero",
        },
        "yaxis": {"title": {"text": report.score}},
        "showlegend": False,
    }
    told = f"{report.score} over cumulative payload: best {curve.best:.4f}, {curve.scores[-1]:.4f} at the end."
    return Chart("score", f"What {report.score} cost", told, [trace], layout)


def _heat(report: RunReport) -> Chart:
    account = report.account
    busiest = sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)
    nodes = sorted((line.node for line in busiest[:_HEAT_NODES]), key=_natural)
    place = {name: row for row, name in enumerate(nodes)}
    labels = [account.stretches.label(window) for window in range(account.stretches.count)]
    cells: list[list[int | None]] = [[None] * len(labels) for _ in nodes]
    for row in account.by("node", "window"):
        if row["node"] in place:
            cells[place[row["node"]]][row["window"]] = row["frame_bytes"]
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": nodes,
        "z": cells,
        "colorscale": "Cividis",
        "zmin": 0,
        "colorbar": {"tickformat": ".3s", "ticksuffix": "B", "thickness": 12},
        "hovertemplate": "%{y}, " + report.unit + " %{x}: %{z:.4s}B<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": report.unit}, "type": "category", "nticks": 12},
        "yaxis": {"type": "category", "autorange": "reversed"},
        "height": 220 + 14 * len(nodes),
    }
    some = f" The {len(nodes)} busiest of {len(busiest)} nodes." if len(busiest) > len(nodes) else ""
    told = f"Frame bytes of each node in each {report.unit}, in all directions.{some}"
    return Chart("nodes", f"Who, and in which {report.unit}", told, [trace], layout)


def _flow(report: RunReport) -> Chart:
    """Senders to the left, kinds in the middle, receivers to the right."""
    rows = report.account.by("node", "direction", "kind", parts=[ONCE])
    sent: dict[str, int] = {}
    for row in rows:
        sent[row["node"]] = sent.get(row["node"], 0) + row["payload_bytes"]
    named = set(sorted(sent, key=lambda name: -sent[name])[:_FLOW_NODES])
    others = f"{len(sent) - len(named)} other nodes"
    flows: dict[tuple[tuple[str, str], tuple[str, str]], int] = {}
    for row in rows:
        node = row["node"] if row["node"] in named else others
        kind = ("kind", f"{row['kind']} {ARROWS[row['direction']][0]}")
        sender, receiver = {"up": (node, "server"), "down": ("server", node), "peer": (node, "peers")}[row["direction"]]
        for ends in ((("from", sender), kind), (kind, ("to", receiver))):
            flows[ends] = flows.get(ends, 0) + row["payload_bytes"]
    flows = {ends: count for ends, count in flows.items() if count}
    places = {end: number for number, end in enumerate(dict.fromkeys(end for ends in flows for end in ends))}
    kinds = [end for end in places if end[0] == "kind"]
    shade = {end: color(kinds.index(end)) if end in kinds else "#8C8C8C" for end in places}
    trace = {
        "type": "sankey",
        "arrangement": "snap",
        "valueformat": ".4s",
        "valuesuffix": "B",
        "node": {
            "label": [label for _, label in places],
            "color": [shade[end] for end in places],
            "pad": 12,
            "thickness": 14,
        },
        "link": {
            "source": [places[a] for a, _ in flows],
            "target": [places[b] for _, b in flows],
            "value": list(flows.values()),
            "color": [_faded(shade[a if a[0] == "kind" else b]) for a, b in flows],
        },
    }
    told = "Payload from senders on the left through kinds of messages to receivers on the right."
    return Chart("flow", "Who sent what to whom", told, [trace], {"height": 180 + 26 * len(places)})


def _plain(value: Any) -> Any:
    """``value`` with each ``<`` and ``&`` in its strings escaped, at any depth; templates of hovers are ours."""
    if isinstance(value, str):
        return value.replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(value, Mapping):
        return {name: entry if name == "hovertemplate" else _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def color(place: int) -> str:
    """Of the ``place``-th thing told apart."""
    return COLORS[place % len(COLORS)]


def _faded(shade: str) -> str:
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def _natural(name: str) -> tuple[str, int, str]:
    """``client-2`` before ``client-10``."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0), name
