"""Progress display of a simulation's trials: bars on a terminal, lines elsewhere, or JSON events."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from .output import duration, emit, say
from .progress import Meter, PlainDisplay, Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ..simulations.trial import Trial


class TrialsDisplay(Protocol):
    """Displays trials; a context manager, so that the terminal is restored."""

    def __enter__(self) -> TrialsDisplay: ...

    def __exit__(self, *_: object) -> None: ...

    def event(self, trial: Trial, event: Mapping[str, Any]) -> None:
        """Show that a trial has begun, made progress, or finished."""


def trials_display(trials: Sequence[Trial], *, as_json: bool) -> TrialsDisplay:
    """Create the display for standard output: JSON, a terminal, or a pipe."""
    if as_json:
        return JsonTrials()
    return LiveTrials(len(trials)) if sys.stdout.isatty() else PlainTrials(len(trials))


class JsonTrials:
    """Prints one JSON event per line: the progress of runs with arm and seed."""

    def __init__(self) -> None:
        self._meters: defaultdict[str, Meter] = defaultdict(Meter)

    def __enter__(self) -> JsonTrials:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, trial: Trial, event: Mapping[str, Any]) -> None:
        fields = {name: value for name, value in event.items() if name != "type"}
        if event["type"] == "progress":
            fields |= asdict(_progress(self._meters[trial.name], event))
        emit({"event": event["type"], "arm": trial.arm, "seed": trial.seed, **fields})


class PlainTrials:
    """Prints a line every few seconds for each running trial, and one for each finished trial."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._begun = time.monotonic()
        self._started_at: dict[str, float] = {}
        self._meters: defaultdict[str, Meter] = defaultdict(Meter)
        self._lines: dict[str, PlainDisplay] = {}

    def __enter__(self) -> PlainTrials:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, trial: Trial, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        began = self._started_at.setdefault(trial.name, now)
        if event["type"] == "finished":
            self._done += 1
            left = (now - self._begun) / self._done * (self._total - self._done)
            eta = f", about {duration(left)} left" if self._done < self._total else ""
            say(f"[{self._done}/{self._total}] {trial.name}: {duration(now - began)}{eta}")
        elif event["type"] == "progress":
            line = self._lines.setdefault(trial.name, PlainDisplay(trial.name))
            line.show(_progress(self._meters[trial.name], event))


class LiveTrials:
    """Shows a bar for all trials, and one for each running trial."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
        )
        self._meters: defaultdict[str, Meter] = defaultdict(Meter)
        self._all = self._bars.add_task("trials", total=total, figures="")
        self._running: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}

    def __enter__(self) -> LiveTrials:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._running.values():
            self._bars.remove_task(task)
        self._bars.stop()

    def event(self, trial: Trial, event: Mapping[str, Any]) -> None:
        name = trial.name
        if event["type"] == "finished":
            self._shares[name] = 1.0
            if name in self._running:
                self._bars.remove_task(self._running.pop(name))
        elif event["type"] == "progress":
            if name not in self._running:
                self._running[name] = self._bars.add_task(f"  {name}", total=event["total"], figures="")
            self._shares[name] = event["done"] / max(1, event["total"])
            shown = "  ".join(_progress(self._meters[name], event).values())
            self._bars.update(self._running[name], completed=event["done"], total=event["total"], figures=shown)
        self._bars.update(self._all, completed=sum(self._shares.values()))


def _progress(meter: Meter, event: Mapping[str, Any]) -> Progress:
    return meter.read(int(event["done"]), int(event["total"]), event.get("values", {}), time.monotonic())
