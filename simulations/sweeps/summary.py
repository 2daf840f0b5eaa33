"""What remains of a sweep: the table of all items in the run's directory, and the result of the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, MissingExtraError, StorageError
from ...engines.work_queue.item import ItemResult
from ...reports.sweep_table import SweepRow, SweepTable
from ...runs.files import write_json
from .config import SweepConfig

_log = logging.getLogger(__name__)

#: Files in the directory of the run.
TABLE, CSV, PICTURE = "sweep.json", "sweep.csv", "sweep.png"


def table_of(config: SweepConfig, results: Sequence[ItemResult]) -> SweepTable:
    """Return the table of all items."""
    rows = [
        SweepRow(
            result.item.config["cell"],
            result.item.seed,
            {} if result.outcome is None else dict(result.outcome.metrics),
            result.error,
            result.item.config.get("budget"),
            result.node,
            result.seconds,
        )
        for result in results
    ]
    return SweepTable(config.method, tuple(config.grid), rows, config.metric, config.best)


def summarize(config: SweepConfig, results: Sequence[ItemResult], directory: Path) -> dict[str, Any]:
    """Write table, CSV and picture; return the run's result: the best cell, counts, and the table."""
    table = table_of(config, results)
    found = table.as_dict()
    write_json(directory / TABLE, found)
    (directory / CSV).write_text(table.csv(), encoding="utf-8")
    _draw(table, directory / PICTURE)
    nodes: dict[str, int] = {}
    for row in table.rows:
        nodes[row.node] = nodes.get(row.node, 0) + 1
    measured = {"nodes": nodes, "item_seconds": sum(row.seconds for row in table.rows)}
    rows = [{name: value for name, value in row.items() if name not in ("node", "seconds")} for row in found["rows"]]
    result: dict[str, Any] = {"items": len(results), "failed_items": len(table.failed), **_best(table)}
    if table.failed:
        result["why"] = table.failed[0].error
    return {**result, "measured": measured, "table": {**found, "rows": rows}}


def _best(table: SweepTable) -> dict[str, Any]:
    try:
        ranked, name = table.ranked(), table.compared
    except ConfigError as error:
        return {"metric": table.metric, "note": str(error)}
    if not ranked:
        return {}
    best = ranked[0]
    return {"metric": name, "best_cell": dict(best.cell), f"best_{name}": best.mean[name]}


def _draw(table: SweepTable, path: Path) -> None:
    from ...reports.sweep_plots import draw_sweep

    try:
        draw_sweep(table, path)
    except (ConfigError, MissingExtraError) as error:
        _log.info("no picture of the sweep: %s", error)
    except StorageError:
        _log.warning("the picture of the sweep cannot be written", exc_info=True)
