"""One run in depth, followed while somebody looks at it: each look reads only what its files gained."""

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
from ...reports.run_report import RunReport, report_of
from ...runs import jsonl
from ...runs.directory import RunDirectory
from ...runs.states import ENDED
from .snapshot import RunView

_EVENTS, _FAILURES, _LINES, _LOG = 50, 20, 200, 64 << 10
#: Points of a metric that are kept; every second one goes when there are more.
_POINTS, _METRICS = 600, 24
#: Rows of the ledger that one look takes in.
_ROWS = 500_000
#: The pause after a look is so many times as long as the look, but no longer than so many seconds.
_PAUSE, _LONGEST = 10, 30.0


class Series:
    """A metric over steps, thinned out where there is too much of it to draw."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self.last: tuple[int, float] | None = None
        self._every = 1
        self._count = 0

    def add(self, step: int, value: float) -> None:
        """Take one figure."""
        if self.last is not None and step <= self.last[0]:  # again, after a restart
            self.points = [point for point in self.points if point[0] < step]
        self.last = step, value
        if self._count % self._every == 0:
            self.points.append((step, value))
        self._count += 1
        if len(self.points) > _POINTS:
            self.points, self._every = self.points[::2], self._every * 2

    def drawn(self) -> Sequence[tuple[int, float]]:
        """The points, the last one among them."""
        last = [self.last] if self.last is not None and self.last not in self.points[-1:] else []
        return [*self.points, *last]


@dataclass(frozen=True, slots=True)
class RunSight:
    """What a run's page shows.

    Attributes
    ----------
    report : RunReport or None
        None while its directory cannot be read; ``trouble`` says why.
    behind : bool
        Whether a long ledger has not been summed up to its end yet.
    charts : sequence of Chart
    metrics : Mapping
        Name -> points (step, value), the last of them the newest.
    events, failures : sequence of Mapping
        As in the run's directory; events newest first, failures oldest first.
    log : sequence of str
        The last lines.
    """

    report: RunReport | None = None
    trouble: str = ""
    behind: bool = False
    charts: Sequence[Chart] = ()
    metrics: Mapping[str, Sequence[tuple[int, float]]] | None = None
    events: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()


class RunDetail:
    """One run; any thread may look.

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
        self._happened: deque[Mapping[str, Any]] = deque(maxlen=_EVENTS)
        self._failed: list[Mapping[str, Any]] = []
        self._sight = RunSight()
        self._due = 0.0
        self._state = ""

    def look(self, state: str) -> RunSight:
        """What there is now; looks that took long are not repeated at once, unless the state is another one."""
        with self._lock:
            began = time.monotonic()
            if began >= self._due or state != self._state:
                self._state = state
                self._sight = self._look()
                ended = time.monotonic()
                self._due = ended if self._sight.behind else ended + max(0.9, min(_LONGEST, _PAUSE * (ended - began)))
            return self._sight

    def _look(self) -> RunSight:
        try:
            grown = self._account.refresh(_ROWS)
            for line in self._metrics.fresh():
                self._measure(line)
            self._happened.extendleft(self._events.fresh())
            self._failed = [*self._failed, *self._failures.fresh()][:_FAILURES]
            sight = self._sight
            if grown or sight.report is None or self._run.result != sight.report.result:
                report = report_of(self._run, self._account.account())
                sight = replace(sight, report=report, charts=charts(report), trouble="")
        except FarshoreError as error:
            return replace(self._sight, report=None, charts=(), trouble=error.message)
        return replace(
            sight,
            behind=self._account.behind,
            metrics={name: series.drawn() for name, series in self._series.items()},
            events=tuple(self._happened),
            failures=tuple(self._failed),
            log=_last_lines(self._run.log),
        )

    def _measure(self, line: Mapping[str, Any]) -> None:
        step = line.get("step")
        for name, value in line.items():
            if name in ("step", "time") or not isinstance(step, int) or not isinstance(value, int | float):
                continue
            if math.isfinite(value) and (name in self._series or len(self._series) < _METRICS):
                self._series.setdefault(name, Series()).add(step, float(value))


class RunDetails:
    """The runs that were looked at last; others begin anew.

    Parameters
    ----------
    most : int
    """

    def __init__(self, most: int = 12) -> None:
        self._most = most
        self._desks: OrderedDict[str, RunDetail] = OrderedDict()

    def of(self, view: RunView) -> RunDetail:
        """The desk of a run. One that ended was read whole; it is kept for others to look at."""
        key = f"{view.row.id} {view.row.ended if view.row.state in ENDED else ''}"
        desk = self._desks.setdefault(key, RunDetail(Path(view.row.directory)))
        self._desks.move_to_end(key)
        while len(self._desks) > self._most:
            self._desks.popitem(last=False)
        return desk


def _last_lines(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG))
            lines = file.read(_LOG).decode(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(lines[1 if size > _LOG else 0 :][-_LINES:])
