"""Comparison of runs: traffic, scores, score over payload, and settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .arms import percent
from .charts import Chart, color
from .run_report import RunReport
from .tables import plain_table
from .units import ratio, size, span

if TYPE_CHECKING:
    from rich.table import Table

#: Name of the link whose estimated transfer time is compared.
_LINK = "LTE"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric or setting of every run.

    Attributes
    ----------
    name : str
    values : tuple
        One value per run; None if a run has none.
    texts : tuple of str
        The values as displayed.
    best : int or None
        Index of the run with the best value; None if values are equal, missing or not ranked.
    """

    name: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    best: int | None = None

    @property
    def differs(self) -> bool:
        """Whether the displayed values differ."""
        return len(set(self.texts)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of two or more runs.

    Attributes
    ----------
    names : tuple of str
        Ids of the runs, made unique by a suffix.
    reports : tuple of RunReport
    metrics : tuple of Row
    settings : tuple of Row
        The settings that differ.
    target : float or None
        A score that all runs reached: the lowest of their best scores, rounded down to a whole percent. None if a run
        has no score.
    """

    names: tuple[str, ...]
    reports: tuple[RunReport, ...]
    metrics: tuple[Row, ...]
    settings: tuple[Row, ...]
    target: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""

        def as_mapping(rows: Sequence[Row]) -> dict[str, Any]:
            return {row.name: dict(zip(self.names, row.values, strict=True)) for row in rows}

        return {
            "runs": list(self.names),
            "metrics": as_mapping(self.metrics),
            "settings": as_mapping(self.settings),
            "target": self.target,
        }


def compare_runs(reports: Sequence[RunReport]) -> Comparison:
    """Compare runs.

    Raises
    ------
    ConfigError
        Fewer than two runs are given.
    """
    if len(reports) < 2:
        raise ConfigError("a comparison needs at least two runs", hint="name two or more runs")
    curves = [report.curve for report in reports]
    best = [curve.best if curve else None for curve in curves]
    target = percent(min(b for b in best if b is not None)) if None not in best else None
    names = _unique_names([str(report.info["id"]) for report in reports])
    return Comparison(names, tuple(reports), tuple(_metrics(reports, target)), tuple(_settings(reports)), target)


def _unique_names(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(name if ids.count(name) == 1 else f"{name} ({ids[:i].count(name) + 1})" for i, name in enumerate(ids))


def _metrics(reports: Sequence[RunReport], target: float | None) -> Iterator[Row]:
    for name, key in (("method", "workload"), ("seed", "seed")):
        values = tuple(report.info[key] for report in reports)
        yield Row(name, values, tuple(map(str, values)))
    states = tuple(report.state for report in reports)
    yield Row("state", states, states)
    counts = tuple(len(report.communication.by_node) for report in reports)
    yield Row("nodes", counts, tuple(map(str, counts)))
    volumes = [{line.direction: line.volume for line in report.communication.by_direction} for report in reports]
    yield _least("payload, each message once", [r.communication.once.payload_bytes for r in reports], size)
    yield _least("payload up", [v["up"].payload_bytes if "up" in v else 0 for v in volumes], size)
    yield _least("payload down", [v["down"].payload_bytes if "down" in v else 0 for v in volumes], size)
    if any("peer" in v for v in volumes):
        yield _least("payload between nodes", [v["peer"].payload_bytes if "peer" in v else 0 for v in volumes], size)
    yield _least("dense", [r.communication.once.dense_bytes for r in reports], size)
    yield _least("total frame bytes", [r.communication.total.frame_bytes for r in reports], size)
    yield _most("dense / payload", [r.communication.once.ratio for r in reports], ratio)
    for name in sorted({c.baseline for report in reports for c in report.compressions}):
        found = [next((c.ratio for c in r.compressions if c.baseline == name), None) for r in reports]
        yield _most(f"compression vs. {name}", found, ratio)
    yield _least(f"transfer time on {_LINK}", [_seconds(report) for report in reports], span)
    if target is not None:
        curves = [report.curve for report in reports if report.curve]
        yield _most(f"best {reports[0].score}", [c.best for c in curves], "{:.4f}".format)
        yield _most(f"last {reports[0].score}", [c.scores[-1] for c in curves], "{:.4f}".format)
        reached = [curve.reaches(target) or (0, 0) for curve in curves]
        yield _least(f"{reports[0].unit}s to {target:g}", [first for first, _ in reached], str)
        yield _least(f"payload to {target:g}", [payload for _, payload in reached], size)


def _seconds(report: RunReport) -> float:
    return next(item.seconds for item in report.links if item.link.name == _LINK)


def _least(name: str, values: Sequence[Any], to_text: Any) -> Row:
    return _ranked(name, values, to_text, min)


def _most(name: str, values: Sequence[Any], to_text: Any) -> Row:
    return _ranked(name, values, to_text, max)


def _ranked(name: str, values: Sequence[Any], to_text: Any, select_best: Any) -> Row:
    texts = tuple("–" if value is None else to_text(value) for value in values)
    known = [value for value in values if value is not None]
    best = values.index(select_best(known)) if len(set(texts)) > 1 and len(known) == len(values) else None
    return Row(name, tuple(values), texts, best)


def _settings(reports: Sequence[RunReport]) -> Iterator[Row]:
    flat = [dict(_flattened(report.info["config"])) for report in reports]
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = tuple(settings.get(name) for settings in flat)
        if any(value != values[0] for value in values):
            yield Row(name, values, tuple("–" if value is None else str(value) for value in values))


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables for a terminal: the metrics, best values in bold, and the settings that differ."""
    table = plain_table("Comparison", left=("",), right=comparison.names)
    for row in comparison.metrics:
        cells = [f"[bold]{text}[/bold]" if index == row.best else text for index, text in enumerate(row.texts)]
        table.add_row(row.name, *cells, style="" if row.differs else "dim")
    yield table
    if comparison.settings:
        table = plain_table("Settings that differ", left=("",), right=comparison.names)
        for row in comparison.settings:
            table.add_row(row.name, *row.texts)
        yield table


def score_over_bytes(comparison: Comparison) -> Chart | None:
    """Chart the score over the cumulative payload, one line per run; None if a run has no score."""
    if comparison.target is None:
        return None
    traces = []
    for index, (name, report) in enumerate(zip(comparison.names, comparison.reports, strict=True)):
        assert report.curve is not None
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": list(report.curve.payload),
                "y": list(report.curve.scores),
                "text": [f"{report.unit} {number}" for number in report.curve.rounds],
                "hovertemplate": "%{text}: %{y:.4f} after %{x:.4s}B<extra>%{fullData.name}</extra>",
                "line": {"color": color(index)},
            }
        )
        traces.append(_pareto_front(report, name, index))
    score = comparison.reports[0].score
    layout = {
        "xaxis": {
            "title": {"text": "cumulative payload"},
            "tickformat": ".3s",
            "ticksuffix": "B",
            "type": "log",
            "dtick": "D2",
        },
        "yaxis": {"title": {"text": score}},
    }
    description = f"{score} over cumulative payload of each run. Dots mark its Pareto front: the best score so far."
    return Chart("pareto", f"{score} over payload", description, traces, layout)


def _pareto_front(report: RunReport, name: str, index: int) -> dict[str, Any]:
    """Points where a run's score is higher than at any earlier point."""
    curve, best = report.curve, float("-inf")
    assert curve is not None
    points = []
    for payload, score in zip(curve.payload, curve.scores, strict=True):
        if score > best:
            points.append((payload, score))
            best = score
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{name}, best so far",
        "x": [payload for payload, _ in points],
        "y": [score for _, score in points],
        "hoverinfo": "skip",
        "showlegend": False,
        "marker": {"color": color(index), "size": 6},
    }
