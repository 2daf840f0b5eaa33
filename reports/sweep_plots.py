"""Pictures of a sweep with matplotlib: a line for one swept setting, a heat map for two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, MissingExtraError, StorageError
from .sweep_table import CellSummary, SweepTable, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Most cells that a picture of more than two settings shows.
_MOST_RANKED = 20
#: A logarithmic axis is used for values that spread over this factor.
_WIDE = 50.0
_COLOR, _BEST = "#0072B2", "#D55E00"


def draw_sweep(table: SweepTable, path: Path) -> None:
    """Draw the compared metric of each cell, and write the figure to a file.

    One swept setting: its mean over the seeds with the standard deviation. Two: a heat map. More: the best cells.

    Parameters
    ----------
    table : SweepTable
    path : Path
        The suffix selects the format: ``.png``, ``.svg``, ``.pdf``.

    Raises
    ------
    ConfigError
        No item has a metric, or the format is not known.
    MissingExtraError
        matplotlib is not installed.
    StorageError
        The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    if not table.ranked():
        raise ConfigError(f"no item of the sweep of '{table.method}' has a metric to draw")
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    swept = [key for key in table.keys if len({text_of(cell.cell[key]) for cell in table.cells}) > 1]
    draw = {1: _draw_line, 2: _draw_map}.get(len(swept), _draw_ranked)
    draw(axes, table, swept)
    better = "higher is better" if table.higher_is_better else "lower is better"
    halved = any(cell.budget is not None for cell in table.cells)
    axes.set_title(f"{table.method}: {table.compared} ({better}{'; each cell at its last budget' if halved else ''})")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ConfigError(f"cannot draw {path}: {error}", hint="use .png, .svg or .pdf") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _draw_line(axes: Axes, table: SweepTable, swept: Sequence[str]) -> None:
    (key,), name = swept, table.compared
    cells = [cell for cell in table.cells if name in cell.mean]
    values = [cell.cell[key] for cell in cells]
    numbers = all(type(value) in (int, float) for value in values)
    x: list[Any] = values if numbers else list(range(len(values)))
    order = sorted(range(len(cells)), key=lambda i: x[i])
    means = [cells[i].mean[name] for i in order]
    sds = [cells[i].sd.get(name, 0.0) for i in order]
    axes.errorbar([x[i] for i in order], means, yerr=sds, color=_COLOR, marker="o", capsize=3, linewidth=1.8)
    best = cells.index(table.ranked()[0])
    axes.plot([x[best]], [cells[best].mean[name]], "o", color=_BEST, markersize=9, label="best", zorder=3)
    axes.set(xlabel=key, ylabel=name)
    if not numbers:
        axes.set_xticks(x, [text_of(value) for value in values])
    elif min(x) > 0 and max(x) / min(x) >= _WIDE:
        axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _draw_map(axes: Axes, table: SweepTable, swept: Sequence[str]) -> None:
    down, across = swept
    name = table.compared
    rows = list(dict.fromkeys(text_of(cell.cell[down]) for cell in table.cells))
    columns = list(dict.fromkeys(text_of(cell.cell[across]) for cell in table.cells))
    grid = [[math.nan] * len(columns) for _ in rows]
    best = table.ranked()[0]
    for cell in table.cells:
        row, column = rows.index(text_of(cell.cell[down])), columns.index(text_of(cell.cell[across]))
        grid[row][column] = cell.mean.get(name, math.nan)
        mark = " *" if cell is best else ""
        box = {"boxstyle": "round", "facecolor": "white", "alpha": 0.75, "edgecolor": _BEST if mark else "none"}
        text = _spread(cell, name) + mark if name in cell.mean else "failed"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, bbox=box)
    image = axes.imshow(grid, cmap="viridis" if table.higher_is_better else "viridis_r", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=name)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=across, ylabel=down)


def _draw_ranked(axes: Axes, table: SweepTable, swept: Sequence[str]) -> None:
    name, shown = table.compared, table.ranked()[:_MOST_RANKED]
    places = list(range(len(shown)))
    sds = [cell.sd.get(name, 0.0) for cell in shown]
    axes.errorbar([cell.mean[name] for cell in shown], places, xerr=sds, fmt="o", color=_COLOR, capsize=3)
    labels = [", ".join(f"{key}={text_of(cell.cell[key])}" for key in swept) or table.method for cell in shown]
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=name)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)


def _spread(cell: CellSummary, name: str) -> str:
    sd = f"\n± {cell.sd[name]:.2g}" if name in cell.sd else ""
    return f"{cell.mean[name]:.4g}{sd}"
