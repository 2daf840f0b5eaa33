"""The charts of a run: embedding, curves and contingency table, as Plotly traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...reports.charts import Chart, color

_METRICS = ("acc", "nmi", "ari", "f1")
_NAMES = {"pca": "principal components", "tsne": "t-SNE"}


def result_charts(
    arrays: Mapping[str, NDArray[Any]], history: Sequence[Mapping[str, float]], selected: int
) -> Iterator[Chart]:
    """Yield the charts of a finished run.

    Parameters
    ----------
    arrays : Mapping
        ``labels`` (N,), ``points.pca`` (N, 2), maybe ``points.tsne``, ``contingency`` (K, C) and ``true`` (N,).
    history : sequence of Mapping
        Metrics by step, each with ``step``.
    selected : int
        The selected epoch.
    """
    for name, title in _NAMES.items():
        if (points := arrays.get(f"points.{name}")) is not None:
            yield _scatter(name, title, points, arrays["labels"], arrays.get("true"))
    if (table := arrays.get("contingency")) is not None:
        yield _contingency(table)
    if curve := _lines(history, _METRICS):
        yield _curves("metrics", "Agreement with the true classes", "per cent", curve, selected)
    if curve := _lines(history, ("loss", "loss_pos", "loss_neg")):
        yield _curves("losses", "Loss", "loss", curve, selected, log=True)


def _scatter(name: str, title: str, points: NDArray[Any], labels: NDArray[Any], true: NDArray[Any] | None) -> Chart:
    traces = []
    for cluster in np.unique(labels).tolist():
        inside = labels == cluster
        trace: dict[str, Any] = {
            "type": "scattergl" if len(labels) > 5_000 else "scatter",
            "mode": "markers",
            "name": f"cluster {cluster}",
            "x": np.round(points[inside, 0].astype(float), 4).tolist(),
            "y": np.round(points[inside, 1].astype(float), 4).tolist(),
            "marker": {"color": color(int(cluster)), "size": 5, "opacity": 0.7},
            "hovertemplate": "%{fullData.name}<extra></extra>",
        }
        if true is not None:
            trace["text"] = [f"class {label}" for label in true[inside].tolist()]
            trace["hovertemplate"] = "%{fullData.name}, %{text}<extra></extra>"
        traces.append(trace)
    layout = {"xaxis": {"title": {"text": "first axis"}}, "yaxis": {"title": {"text": "second axis"}}, "height": 460}
    description = f"The embedding of {len(labels)} nodes in two dimensions by {title}, colored by cluster."
    return Chart(f"embedding-{name}", f"Clusters ({title})", description, traces, layout)


def _contingency(table: NDArray[Any]) -> Chart:
    trace = {
        "type": "heatmap",
        "x": [f"class {index}" for index in range(table.shape[1])],
        "y": [f"cluster {index}" for index in range(table.shape[0])],
        "z": table.tolist(),
        "text": table.tolist(),
        "texttemplate": "%{text}",
        "colorscale": "Cividis",
        "colorbar": {"thickness": 12},
        "hovertemplate": "%{y}, %{x}: %{z} nodes<extra></extra>",
    }
    layout = {"yaxis": {"autorange": "reversed"}, "height": 220 + 32 * table.shape[0]}
    return Chart("contingency", "Clusters and classes", "Number of nodes by cluster and true class.", [trace], layout)


def _lines(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    lines = {}
    for name in names:
        found = [(entry["step"], entry[name]) for entry in history if isinstance(entry.get(name), int | float)]
        if any(value for _, value in found):
            lines[name] = [float(step) for step, _ in found], [float(value) for _, value in found]
    return lines


def _curves(
    name: str,
    title: str,
    unit: str,
    lines: Mapping[str, tuple[list[float], list[float]]],
    selected: int,
    *,
    log: bool = False,
) -> Chart:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": series,
            "x": steps,
            "y": [value if value > 0 or not log else None for value in values],
            "line": {"color": color(index)},
        }
        for index, (series, (steps, values)) in enumerate(lines.items())
    ]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": unit}, **({"type": "log"} if log else {})},
        "shapes": [
            {
                "type": "line",
                "x0": selected + 1,
                "x1": selected + 1,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"dash": "dot", "width": 1, "color": "#8C8C8C"},
            }
        ],
    }
    return Chart(name, title, f"{title} over epochs; the dotted line is the selected epoch.", traces, layout)
