"""Charts that a method writes into its run's directory, ``charts/NAME.json``; reports and the dashboard show them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import FarshoreError, MissingExtraError, StorageError
from ..runs import files
from .charts import Chart, color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FOLDER = "charts"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
#: Limits of what is read: files, and bytes of each.
_MOST, _MAX_BYTES = 12, 8 << 20


def write_charts(directory: Path, charts: Iterable[Chart]) -> None:
    """Write charts for a run's report, in the order in which it shows them.

    Parameters
    ----------
    directory : Path
        Of the run.
    charts : iterable of Chart
        Their names are lowercase letters, digits and hyphens.

    Raises
    ------
    StorageError
        Writing fails.
    """
    folder = directory / _FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.storage_error(f"cannot create the directory {folder}", error) from error
    for place, chart in enumerate(charts):
        assert _NAME.fullmatch(chart.name), chart.name
        content = {"title": chart.title, "description": chart.description}
        files.write_json(
            folder / f"{place:02}-{chart.name}.json",
            {**content, "traces": list(chart.traces), "layout": dict(chart.layout)},
        )


def read_charts(directory: Path) -> tuple[Chart, ...]:
    """Read the charts in a run's directory; damaged ones are left out."""
    found = []
    for path in sorted((directory / _FOLDER).glob("*.json"))[:_MOST]:
        name = path.stem.partition("-")[2]
        try:
            if path.stat().st_size > _MAX_BYTES or not _NAME.fullmatch(name):
                continue
            content = files.read_json(path)
            traces, layout = content["traces"], content["layout"]
            if isinstance(traces, list) and isinstance(layout, dict):
                title, description = str(content["title"]), str(content["description"])
                found.append(Chart(f"method-{name}", title, description, traces, layout))
        except (FarshoreError, OSError, KeyError, json.JSONDecodeError):
            continue
    return tuple(found)


def draw_charts(charts: Sequence[Chart], path: Path) -> None:
    """Draw scatter, line and heat-map charts as one image.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    StorageError
        The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    columns = min(2, max(1, len(charts)))
    rows = max(1, -(-len(charts) // columns))
    figure = Figure(figsize=(6.4 * columns, 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, chart in zip(panels, charts, strict=False):
        _draw(axes, chart)
    for axes in list(panels)[len(charts) :]:
        axes.set_axis_off()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _draw(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=10)
    for index, trace in enumerate(chart.traces):
        if trace["type"] == "heatmap":
            _draw_heatmap(axes, trace)
        elif trace.get("mode") == "markers":
            axes.scatter(
                trace["x"], trace["y"], s=8, alpha=0.7, color=_color(trace, "marker", index), label=trace["name"]
            )
        else:
            y = [float("nan") if value is None else value for value in trace["y"]]
            axes.plot(trace["x"], y, color=_color(trace, "line", index), label=trace["name"])
    for name in ("x", "y"):
        about = chart.layout.get(f"{name}axis", {})
        axes.set(**{f"{name}label": about.get("title", {}).get("text", "")})
        if about.get("type") == "log":
            axes.set(**{f"{name}scale": "log"})
    if any("name" in trace for trace in chart.traces):
        axes.legend(frameon=False, fontsize=8)


def _draw_heatmap(axes: Axes, trace: Mapping[str, Any]) -> None:
    axes.imshow(trace["z"], cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(trace["x"])), trace["x"], fontsize=8)
    axes.set_yticks(range(len(trace["y"])), trace["y"], fontsize=8)
    highest = max(max(row) for row in trace["z"])
    for y, row in enumerate(trace["z"]):
        for x, value in enumerate(row):
            axes.text(x, y, value, ha="center", va="center", fontsize=8, color="w" if value < highest / 2 else "k")


def _color(trace: Mapping[str, Any], part: str, index: int) -> str:
    return str(trace.get(part, {}).get("color", color(index)))
