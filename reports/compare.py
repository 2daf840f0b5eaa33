"""Runs beside each other: where their settings differ, what each sent, and what each byte brought."""

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

#: The link whose time is compared.
_LINK = "LTE"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every run.

    Attributes
    ----------
    name : str
    values : tuple
        Numbers or words, one per run; None where a run has none.
    shown : tuple of str
        The same for people.
    best : int or None
        Which run has the best, where one is better than the others.
    """

    name: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]
    best: int | None = None

    @property
    def differs(self) -> bool:
        """Whether the runs do not agree."""
        return len(set(self.shown)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs beside each other.

    Attributes
    ----------
    names : tuple of str
        Told apart, even where two runs have the same id.
    reports : tuple of RunReport
    figures, settings : tuple of Row
        ``settings`` are those that differ.
    target : float or None
        A score that all runs reached: the lowest of their best ones, rounded down to a whole percent.
    """

    names: tuple[str, ...]
    reports: tuple[RunReport, ...]
    figures: tuple[Row, ...]
    settings: tuple[Row, ...]
    target: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""

        def told(rows: Sequence[Row]) -> dict[str, Any]:
            return {row.name: dict(zip(self.names, row.values, strict=True)) for row in rows}

        return {
            "runs": list(self.names),
            "figures": told(self.figures),
            "settings": told(self.settings),
            "target": self.target,
        }


def compare_runs(reports: Sequence[RunReport]) -> Comparison:
    """Compare runs.

    Raises
    ------
    ConfigError
        There is but one.
    """
    if len(reports) < 2:
        raise ConfigError("one run cannot be compared", hint="name two runs or more")
    curves = [report.curve for report in reports]
    best = [curve.best if curve else None for curve in curves]
    target = percent(min(b for b in best if b is not None)) if None not in best else None
    names = _names([str(report.info["id"]) for report in reports])
    return Comparison(names, tuple(reports), tuple(_figures(reports, target)), tuple(_settings(reports)), target)


def _names(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(name if ids.count(name) == 1 else f"{name} ({ids[:i].count(name) + 1})" for i, name in enumerate(ids))


def _figures(reports: Sequence[RunReport], target: float | None) -> Iterator[Row]:
    for name, word in (("method", "workload"), ("seed", "seed")):
        values = tuple(report.info[word] for report in reports)
        yield Row(name, values, tuple(map(str, values)))
    states = tuple(report.state for report in reports)
    yield Row("state", states, states)
    counts = tuple(len(report.communication.by_node) for report in reports)
    yield Row("nodes", counts, tuple(map(str, counts)))
    sides = [{line.direction: line.volume for line in report.communication.by_direction} for report in reports]
    yield _least("payload, each message once", [r.communication.once.payload_bytes for r in reports], size)
    yield _least("payload up", [s["up"].payload_bytes if "up" in s else 0 for s in sides], size)
    yield _least("payload down", [s["down"].payload_bytes if "down" in s else 0 for s in sides], size)
    if any("peer" in s for s in sides):
        yield _least("payload between nodes", [s["peer"].payload_bytes if "peer" in s else 0 for s in sides], size)
    yield _least("dense", [r.communication.once.dense_bytes for r in reports], size)
    yield _least("frames, all in all", [r.communication.total.frame_bytes for r in reports], size)
    yield _most("dense / payload", [r.communication.once.ratio for r in reports], ratio)
    for name in sorted({c.baseline for report in reports for c in report.compressions}):
        found = [next((c.ratio for c in r.compressions if c.baseline == name), None) for r in reports]
        yield _most(f"less than {name}", found, ratio)
    yield _least(f"transfers on {_LINK}", [_seconds(report) for report in reports], span)
    if target is not None:
        curves = [report.curve for report in reports if report.curve]
        yield _most(f"best {reports[0].score}", [c.best for c in curves], "{:.4f}".format)
        yield _most(f"last {reports[0].score}", [c.scores[-1] for c in curves], "{:.4f}".format)
        reached = [curve.reaches(target) or (0, 0) for curve in curves]
        yield _least(f"{reports[0].unit}s to {target:g}", [first for first, _ in reached], str)
        yield _least(f"payload to {target:g}", [paid for _, paid in reached], size)


def _seconds(report: RunReport) -> float:
    return next(item.seconds for item in report.links if item.link.name == _LINK)


def _least(name: str, values: Sequence[Any], shown: Any) -> Row:
    return _ranked(name, values, shown, min)


def _most(name: str, values: Sequence[Any], shown: Any) -> Row:
    return _ranked(name, values, shown, max)


def _ranked(name: str, values: Sequence[Any], shown: Any, which: Any) -> Row:
    words = tuple("–" if value is None else shown(value) for value in values)
    known = [value for value in values if value is not None]
    best = values.index(which(known)) if len(set(words)) > 1 and len(known) == len(values) else None
    return Row(name, tuple(values), words, best)


def _settings(reports: Sequence[RunReport]) -> Iterator[Row]:
    flat = [dict(_flat(report.info["config"])) for report in reports]
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = tuple(settings.get(name) for settings in flat)
        if any(value != values[0] for value in values):
            yield Row(name, values, tuple("–" if value is None else str(value) for value in values))


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def comparison_tables(found: Comparison) -> Iterator[Table]:
    """For a terminal: what each sent, the best in bold; then the settings that differ."""
    table = plain_table("Side by side", left=("",), right=found.names)
    for row in found.figures:
        cells = [f"[bold]{word}[/bold]" if place == row.best else word for place, word in enumerate(row.shown)]
        table.add_row(row.name, *cells, style="" if row.differs else "dim")
    yield table
    if found.settings:
        table = plain_table("Settings that differ", left=("",), right=found.names)
        for row in found.settings:
            table.add_row(row.name, *row.shown)
        yield table


def score_over_bytes(found: Comparison) -> Chart | None:
    """The best score so far over the bytes that it cost, one line per run; None where a run has no score."""
    if found.target is None:
        return None
    traces = []
    for place, (name, report) in enumerate(zip(found.names, found.reports, strict=True)):
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
                "line": {"color": color(place)},
            }
        )
        traces.append(_frontier(report, name, place))
    score = found.reports[0].score
    layout = {
        "xaxis": {
            "title": {"text": "payload until then"},
            "tickformat": ".3s",
            "ticksuffix": "B",
            "type": "log",
            "dtick": "D2",
        },
        "yaxis": {"title": {"text": score}},
    }
    told = f"{score} over cumulative payload of each run; the dots are its Pareto front: no earlier byte gave as much."
    return Chart("pareto", "What each byte brought", told, traces, layout)


def _frontier(report: RunReport, name: str, place: int) -> dict[str, Any]:
    """Where a run's score is higher than ever before."""
    curve, best = report.curve, float("-inf")
    assert curve is not None
    points = []
    for paid, score in zip(curve.payload, curve.scores, strict=True):
        if score > best:
            points.append((paid, score))
            best = score
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{name}, best so far",
        "x": [paid for paid, _ in points],
        "y": [score for _, score in points],
        "hoverinfo": "skip",
        "showlegend": False,
        "marker": {"color": color(place), "size": 6},
    }
