"""The charts of a report as Plotly traces and layouts, drawn by plotly.js in a page or on the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .account import ONCE
from .units import ARROWS, size

if TYPE_CHECKING:
    from .run_report import RunReport

#: Distinguishable with every common kind of color vision (Okabe and Ito, 2008), on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")
#: Maximum number of nodes that the heat map and the flow chart show by name.
_HEATMAP_NODES, _FLOW_NODES = 60, 10


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes
    ----------
    name : str
        Used in element ids.
    title : str
    description : str
        What the chart shows, in one sentence; also its text alternative for screen readers.
    traces, layout : JSON-serializable
        Arguments of ``Plotly.react``; the page adds the colors of text and grid.
    """

    name: str
    title: str
    description: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict; ``<`` and ``&`` in names are escaped, as Plotly interprets markup."""
        return {"name": self.name, "traces": _escaped(self.traces), "layout": dict(self.layout)}


def charts(report: RunReport) -> list[Chart]:
    """Build the charts that the run has data for: those of its method, then those of its traffic."""
    found = list(report.method_charts)
    if not report.windows:
        return found
    found.append(_by_kind(report))
    if report.curve is not None:
        found.append(_score_over_bytes(report))
    if len(report.communication.by_node) > 1:
        found.append(_heatmap(report))
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
            "marker": {"color": color(index)},
            "hovertemplate": "%{y:.4s}B<extra>%{fullData.name}</extra>",
        }
        for index, kind in enumerate(kinds)
    ]
    layout = {
        "barmode": "stack",
        "hovermode": "x unified",
        "xaxis": {"title": {"text": report.unit}, "type": "category", "nticks": 12},
        "yaxis": {"title": {"text": "payload"}, "tickformat": ".3s", "ticksuffix": "B"},
    }
    total = size(report.communication.once.payload_bytes)
    description = f"Payload bytes of each {report.unit}, stacked by kind; {total} in total."
    return Chart("rounds", f"Bytes by {report.unit}", description, traces, layout)


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
            "title": {"text": "cumulative payload"},
            "tickformat": ".3s",
            "ticksuffix": "B",
            "rangemode": "tozero",
        },
        "yaxis": {"title": {"text": report.score}},
        "showlegend": False,
    }
    description = f"{report.score} over cumulative payload: best {curve.best:.4f}, last {curve.scores[-1]:.4f}."
    return Chart("score", f"{report.score} over payload", description, [trace], layout)


def _heatmap(report: RunReport) -> Chart:
    account = report.account
    busiest = sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)
    nodes = sorted((line.node for line in busiest[:_HEATMAP_NODES]), key=_natural)
    node_row = {name: index for index, name in enumerate(nodes)}
    labels = [account.node_periods.label(window) for window in range(account.node_periods.count)]
    cells: list[list[int | None]] = [[None] * len(labels) for _ in nodes]
    for row in account.by("node", "window"):
        if row["node"] in node_row:
            cells[node_row[row["node"]]][row["window"]] = row["frame_bytes"]
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
    subset = f" The {len(nodes)} busiest of {len(busiest)} nodes." if len(busiest) > len(nodes) else ""
    description = f"Frame bytes of each node in each {report.unit}, all directions.{subset}"
    return Chart("nodes", f"Bytes by node and {report.unit}", description, [trace], layout)


def _flow(report: RunReport) -> Chart:
    """Sankey diagram: senders on the left, kinds in the middle, receivers on the right."""
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
        for edge in ((("from", sender), kind), (kind, ("to", receiver))):
            flows[edge] = flows.get(edge, 0) + row["payload_bytes"]
    flows = {edge: count for edge, count in flows.items() if count}
    vertices = {vertex: index for index, vertex in enumerate(dict.fromkeys(v for edge in flows for v in edge))}
    kinds = [vertex for vertex in vertices if vertex[0] == "kind"]
    shade = {vertex: color(kinds.index(vertex)) if vertex in kinds else "#8C8C8C" for vertex in vertices}
    trace = {
        "type": "sankey",
        "arrangement": "snap",
        "valueformat": ".4s",
        "valuesuffix": "B",
        "node": {
            "label": [label for _, label in vertices],
            "color": [shade[vertex] for vertex in vertices],
            "pad": 12,
            "thickness": 14,
        },
        "link": {
            "source": [vertices[a] for a, _ in flows],
            "target": [vertices[b] for _, b in flows],
            "value": list(flows.values()),
            "color": [_faded(shade[a if a[0] == "kind" else b]) for a, b in flows],
        },
    }
    description = "Payload from senders (left) by kind of message (middle) to receivers (right)."
    return Chart(
        "flow", "Flow by sender, kind and receiver", description, [trace], {"height": 180 + 26 * len(vertices)}
    )


def _escaped(value: Any) -> Any:
    """Escape ``<`` and ``&`` in all strings of ``value`` except hover templates, which hold no names."""
    if isinstance(value, str):
        return value.replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(value, Mapping):
        return {name: entry if name == "hovertemplate" else _escaped(entry) for name, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list | tuple) else value


def color(index: int) -> str:
    """Return the color of the series with this index."""
    return COLORS[index % len(COLORS)]


def _faded(shade: str) -> str:
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def _natural(name: str) -> tuple[str, int, str]:
    """Sort key that orders numbers by value: ``client-2`` before ``client-10``."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0), name
