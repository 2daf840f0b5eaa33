"""The rungs of successive halving: which cells go on with a larger budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...engines.work_queue.item import ItemResult
from .cells import cells
from .config import SweepConfig
from .summary import table_of


def next_rung(config: SweepConfig, results: Sequence[ItemResult]) -> tuple[int, list[dict[str, Any]]] | None:
    """Return budget and cells of the next rung, in the order of the grid; None if there is none.

    Of ``n`` cells, ``n / factor``, rounded up, are kept: those with the best mean over the seeds. Cells without a value
    are dropped; of equal cells, the first are kept.

    Parameters
    ----------
    config : SweepConfig
    results : sequence of ItemResult
        All items so far.

    Raises
    ------
    ConfigError
        The method does not report the metric.
    """
    halving = config.halving
    if halving is None:
        return None
    reached = max(result.item.config["budget"] for result in results)
    later = [budget for budget in halving.budgets if budget > reached]
    if not later:
        return None
    rung = [result for result in results if result.item.config["budget"] == reached]
    table = replace(table_of(config, rung), metric=config.metric)
    kept = table.ranked()[: math.ceil(len(table.cells) / halving.factor)]
    chosen = [dict(cell.cell) for cell in kept]
    order = [cell for cell in cells(config) if cell in chosen]
    return (later[0], order) if order else None
