"""The results of a sweep: a row per item, and mean and standard deviation of each metric per cell."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal

from ..core.errors import ConfigError
from ..core.nodes import nearest_name

#: Metrics by which cells are compared unless another is named, and names of those that are better when lower.
_USUAL = ("acc", "accuracy", "score", "loss")
_LOWER = re.compile(r"loss|error|perplexity|mse|mae|seconds|bytes", re.IGNORECASE)


@dataclass(frozen=True)
class SweepRow:
    """An item.

    Attributes
    ----------
    cell : Mapping
        Value of each swept setting.
    budget : int or None
        Of successive halving.
    metrics : Mapping
        Numbers and texts; empty if it failed.
    error : str
        Why it failed; empty if it did not.
    """

    cell: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    budget: int | None = None
    node: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class CellSummary:
    """A cell over its seeds.

    Attributes
    ----------
    seeds, failed : int
        Items of the largest budget that the cell reached, and how many of them failed.
    mean, sd : Mapping[str, float]
        Of each numeric metric, over the items that did not fail; ``sd`` is that of a sample, absent for a single value.
    """

    cell: Mapping[str, Any]
    budget: int | None
    seeds: int
    failed: int
    mean: Mapping[str, float]
    sd: Mapping[str, float]


@dataclass(frozen=True)
class SweepTable:
    """All items of a sweep.

    Attributes
    ----------
    method : str
    keys : tuple of str
        The swept settings.
    rows : sequence of SweepRow
    metric : str
        By which cells are compared; empty = chosen by name.
    best : {"auto", "max", "min"}
    """

    method: str
    keys: tuple[str, ...]
    rows: Sequence[SweepRow]
    metric: str = ""
    best: Literal["auto", "max", "min"] = "auto"

    @cached_property
    def cells(self) -> list[CellSummary]:
        """One summary per cell, in the order of the rows."""
        groups: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            groups.setdefault(json.dumps([row.cell[key] for key in self.keys]), []).append(row)
        return [_summary(rows) for rows in groups.values()]

    @cached_property
    def numeric(self) -> tuple[str, ...]:
        """Names of the metrics that are numbers."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.mean))

    @property
    def varying(self) -> list[str]:
        """The numeric metrics that are not the same in all cells, and are no swept settings."""
        found = [name for name in self.numeric if name not in self.keys]
        return [name for name in found if len({cell.mean.get(name) for cell in self.cells}) > 1]

    @property
    def compared(self) -> str:
        """The metric by which cells are compared; empty if there is none.

        Raises
        ------
        ConfigError
            No item has the metric that was asked for.
        """
        if self.metric and self.numeric and self.metric not in self.numeric:
            raise ConfigError(
                f"'{self.method}' reports no metric '{self.metric}'",
                hint=nearest_name(self.metric, self.numeric) or f"its metrics are {', '.join(self.numeric)}",
            )
        usual = [name for name in _USUAL if name in self.numeric]
        return self.metric or next(iter([*usual, *self.varying, *self.numeric]), "")

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values of :attr:`compared` are better."""
        return not _LOWER.search(self.compared) if self.best == "auto" else self.best == "max"

    def ranked(self) -> list[CellSummary]:
        """The cells with a value, best first; those with a larger budget before others."""
        sign = -1 if self.higher_is_better else 1
        name = self.compared
        valid = [cell for cell in self.cells if math.isfinite(cell.mean.get(name, math.nan))]
        return sorted(valid, key=lambda cell: (-(cell.budget or 0), sign * cell.mean[name]))

    @property
    def failed(self) -> list[SweepRow]:
        """The items that failed."""
        return [row for row in self.rows if row.error]

    def csv(self) -> str:
        """Return one line per item: its cell, seed, metrics, error, node and seconds.

        A metric that has the name of another column gets the prefix ``metric.``.
        """
        names = list(dict.fromkeys(name for row in self.rows for name in row.metrics))
        budgets = ["budget"] if any(row.budget is not None for row in self.rows) else []
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        own = [*self.keys, *budgets, "seed", "error", "node", "seconds"]
        metrics = [f"metric.{name}" if name in own else name for name in names]
        writer.writerow([*self.keys, *budgets, "seed", *metrics, "error", "node", "seconds"])
        for row in self.rows:
            cell = [_plain(row.cell[key]) for key in self.keys]
            values = [row.metrics.get(name, "") for name in names]
            writer.writerow(
                [*cell, *([row.budget] if budgets else []), row.seed, *values, row.error, row.node, row.seconds]
            )
        return file.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values, for :meth:`from_dict`."""
        return {
            "method": self.method,
            "keys": list(self.keys),
            "metric": self.metric,
            "best": self.best,
            "rows": [
                {
                    "cell": dict(row.cell),
                    "seed": row.seed,
                    "metrics": dict(row.metrics),
                    "error": row.error,
                    "budget": row.budget,
                    "node": row.node,
                    "seconds": row.seconds,
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepTable:
        """Return the table that :meth:`as_dict` described."""
        rows = [SweepRow(**row) for row in values["rows"]]
        return cls(values["method"], tuple(values["keys"]), rows, values["metric"], values["best"])


def text_of(value: Any) -> str:
    """Format the value of a setting."""
    return f"{value:g}" if type(value) is float else str(_plain(value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _summary(rows: Sequence[SweepRow]) -> CellSummary:
    budget = max((row.budget for row in rows if row.budget is not None), default=None)
    last = [row for row in rows if row.budget == budget]
    values: dict[str, list[float]] = {}
    for row in last:
        for name, value in row.metrics.items():
            if isinstance(value, int | float):
                values.setdefault(name, []).append(float(value))
    return CellSummary(
        last[0].cell,
        budget,
        len(last),
        sum(bool(row.error) for row in last),
        {name: fmean(each) for name, each in values.items()},
        {name: _deviation(each) for name, each in values.items() if len(each) > 1},
    )


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if all(map(math.isfinite, values)) else math.nan
