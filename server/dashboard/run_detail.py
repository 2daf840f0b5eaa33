"""Data of the page of one run, updated incrementally from the new parts of its files."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...core.errors import FarshoreError
from ...reports.charts import Chart, charts
from ...reports.growing_account import GrowingAccount
from ...reports.run_report import RunReport, build_report
from ...runs import jsonl
from ...runs.directory import RunDirectory
from ...runs.states import ENDED
from .snapshot import RunView

#: Limits of what is shown: events, failures, lines and bytes of the log.
_MAX_EVENTS, _MAX_FAILURES, _MAX_LOG_LINES, _MAX_LOG_BYTES = 50, 20, 200, 64 << 10
#: Maximum number of points per metric (beyond it, every second one is dropped), and of metrics.
_MAX_POINTS, _MAX_METRICS = 600, 24
#: Ledger rows that one refresh reads.
_ROWS = 500_000
#: The pause between refreshes as a multiple of their duration, and its maximum in seconds.
_PAUSE_FACTOR, _MAX_PAUSE = 10, 30.0


class Series:
    """A metric over rounds or steps, downsampled to a bounded number of points."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self.last: tuple[int, float] | None = None
        self._stride = 1
        self._count = 0

    def add(self, step: int, value: float) -> None:
        """Append a value; if ``step`` repeats an earlier one after a restart, later points are dropped."""
        if self.last is not None and step <= self.last[0]:
            self.points = [point for point in self.points if point[0] < step]
        self.last = step, value
        if self._count % self._stride == 0:
            self.points.append((step, value))
        self._count += 1
        if len(self.points) > _MAX_POINTS:
            self.points, self._stride = self.points[::2], self._stride * 2

    def drawn(self) -> Sequence[tuple[int, float]]:
        """The points to draw, always including the last one."""
        last = [self.last] if self.last is not None and self.last not in self.points[-1:] else []
        return [*self.points, *last]


@dataclass(frozen=True, slots=True)
class RunDetailView:
    """The data that the page of a run shows.

    Attributes
    ----------
    report : RunReport or None
        None if the run directory cannot be read.
    error : str
        Why ``report`` is None.
    behind : bool
        Whether the ledger has not been read to its end yet.
    charts : sequence of Chart
    metrics : Mapping
        Name -> points (step, value), oldest first.
    events, failures : sequence of Mapping
        Lines of ``events.jsonl``, newest first, and of ``failures.jsonl``, oldest first.
    log : sequence of str
        The last lines of the log.
    """

    report: RunReport | None = None
    error: str = ""
    behind: bool = False
    charts: Sequence[Chart] = ()
    metrics: Mapping[str, Sequence[tuple[int, float]]] | None = None
    events: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()


class RunDetail:
    """Reads the detail data of one run incrementally. Thread-safe.

    Parameters
    ----------
    directory : Path
    """

    def __init__(self, directory: Path) -> None:
        self._run = RunDirectory(directory)
        self._lock = threading.Lock()
        self._account = GrowingAccount(directory)
        self._metrics = jsonl.Tail(directory / "metrics.jsonl")
        self._events = jsonl.Tail(directory / "events.jsonl")
        self._failures = jsonl.Tail(directory / "failures.jsonl")
        self._series: dict[str, Series] = {}
        self._recent_events: deque[Mapping[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._first_failures: list[Mapping[str, Any]] = []
        self._view = RunDetailView()
        self._due = 0.0
        self._state = ""

    def refresh(self, state: str) -> RunDetailView:
        """Return the current data.

        The files are read again only after a pause proportional to the duration of the last refresh, or if the run's
        ``state`` has changed.
        """
        with self._lock:
            started = time.monotonic()
            if started >= self._due or state != self._state:
                self._state = state
                self._view = self._read()
                ended = time.monotonic()
                pause = max(0.9, min(_MAX_PAUSE, _PAUSE_FACTOR * (ended - started)))
                self._due = ended if self._view.behind else ended + pause
            return self._view

    def _read(self) -> RunDetailView:
        try:
            grown = self._account.refresh(_ROWS)
            for line in self._metrics.read_new():
                self._add_metrics(line)
            self._recent_events.extendleft(self._events.read_new())
            self._first_failures = [*self._first_failures, *self._failures.read_new()][:_MAX_FAILURES]
            view = self._view
            if grown or view.report is None or self._run.result != view.report.result:
                report = build_report(self._run, self._account.account())
                view = replace(view, report=report, charts=charts(report), error="")
        except FarshoreError as error:
            return replace(self._view, report=None, charts=(), error=error.message)
        return replace(
            view,
            behind=self._account.behind,
            metrics={name: series.drawn() for name, series in self._series.items()},
            events=tuple(self._recent_events),
            failures=tuple(self._first_failures),
            log=_last_lines(self._run.log),
        )

    def _add_metrics(self, line: Mapping[str, Any]) -> None:
        step = line.get("step")
        for name, value in line.items():
            if name in ("step", "time") or not isinstance(step, int) or not isinstance(value, int | float):
                continue
            if math.isfinite(value) and (name in self._series or len(self._series) < _MAX_METRICS):
                self._series.setdefault(name, Series()).add(step, float(value))


class RunDetailCache:
    """A least-recently-used cache of :class:`RunDetail`.

    Parameters
    ----------
    limit : int
        Maximum number of runs.
    """

    def __init__(self, limit: int = 12) -> None:
        self._limit = limit
        self._details: OrderedDict[str, RunDetail] = OrderedDict()

    def get(self, view: RunView) -> RunDetail:
        """Return the detail reader of a run; a new one once the run has ended."""
        key = f"{view.row.id} {view.row.ended if view.row.state in ENDED else ''}"
        detail = self._details.setdefault(key, RunDetail(Path(view.row.directory)))
        self._details.move_to_end(key)
        while len(self._details) > self._limit:
            self._details.popitem(last=False)
        return detail


def _last_lines(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MAX_LOG_BYTES))
            lines = file.read(_MAX_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(lines[1 if size > _MAX_LOG_BYTES else 0 :][-_MAX_LOG_LINES:])
