"""How far a long command is: one live line on a terminal, plain lines elsewhere, or one JSON event a line.

The same for real runs, simulations and the demonstration: round or step of how many, clients, loss, seconds, bytes up
and down, time to go.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..reports.units import size
from .output import duration, emit, say

#: States that a run does not leave by itself.
ENDED = frozenset({"finished", "failed", "cancelled", "interrupted"})
_PLAIN_SECONDS = 5.0
_WINDOW = 32


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    state, reason : str
        The run's state, and why in words.
    done, total : int
        Steps.
    loss : float or None
        The method's own figure.
    up_bytes, down_bytes : int or None
        Frame bytes so far; None where nothing goes over a wire.
    rate : float
        Steps per second over the last steps; 0 while unknown.
    unit : str
        What is counted: ``step`` or ``round``.
    accuracy : float or None
    clients : str
        Of the last round: how many answered, were late and failed.
    seconds : float or None
        That the last round took.
    """

    state: str
    reason: str
    done: int
    total: int
    loss: float | None
    up_bytes: int | None
    down_bytes: int | None
    rate: float
    unit: str = "step"
    accuracy: float | None = None
    clients: str = ""
    seconds: float | None = None

    @property
    def eta(self) -> float | None:
        """Seconds to go, or None while unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None

    def line(self) -> str:
        """One line for people."""
        if self.state not in ("running", *ENDED) or not self.total:
            return f"{self.state}{': ' if self.reason else ''}{self.reason}"
        parts = [f"{self.unit} {self.done}/{self.total}", *self.figures()]
        return "  ".join(parts)

    def figures(self) -> list[str]:
        """Clients, loss, accuracy, rate, bytes and time to go, those that are known."""
        parts = [f"clients {self.clients}"] if self.clients else []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.accuracy is not None:
            parts.append(f"acc {self.accuracy:.1%}")
        if self.seconds is not None:
            parts.append(f"{self.seconds:.1f} s")
        elif self.rate:
            parts.append(f"{self.rate:.1f} {self.unit}s/s")
        if self.up_bytes is not None and self.down_bytes is not None:
            parts.append(f"up {size(self.up_bytes)}")
            parts.append(f"down {size(self.down_bytes)}")
        if self.eta is not None and self.done < self.total:
            parts.append(f"ETA {duration(self.eta)}")
        return parts


class Rate:
    """Steps per second over the last steps."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def at(self, done: int, now: float) -> float:
        """The rate once ``done`` steps are done at monotonic time ``now``, seconds; 0 while it is unknown."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # restarted from a checkpoint
        # Loading models comes before the first step and says nothing about the next ones.
        if done and (not self._seen or done > self._seen[-1][1]):
            self._seen.append((now, done))
        if len(self._seen) < 2:
            return 0.0
        (first, start), (last, end) = self._seen[0], self._seen[-1]
        return (end - start) / max(1e-9, last - first)


class Meter:
    """Turns what a run tells of itself into :class:`Progress`; one per run."""

    def __init__(self) -> None:
        self._rate = Rate()

    def read(
        self, done: int, total: int, told: Mapping[str, Any], now: float, state: str = "running", reason: str = ""
    ) -> Progress:
        """Take in what was told at monotonic time ``now``, seconds.

        ``told`` holds the figures that a method gives with its progress (``loss``, ``acc``, ``unit``, ``seconds``,
        ``ok``, ``late``, ``failed``), and those of the wire (``frame_up``, ``frame_down``) where there is one.
        """
        counts = [(told.get(name), name) for name in ("ok", "late", "failed")]
        return Progress(
            state,
            reason,
            done,
            total,
            _number(told, "loss"),
            _bytes(told, "frame_up"),
            _bytes(told, "frame_down"),
            self._rate.at(done, now),
            str(told.get("unit", "step")),
            _number(told, "acc"),
            ", ".join(f"{count:.0f} {name}" for count, name in counts if isinstance(count, int | float)),
            _number(told, "seconds"),
        )


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value = told.get(name)
    return float(value) if isinstance(value, int | float) else None


def _bytes(told: Mapping[str, Any], name: str) -> int | None:
    value = _number(told, name)
    return None if value is None else int(value)


class Display(Protocol):
    """Where progress is shown; a context manager, so that a terminal is left in order."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """Show the newest progress."""


class JsonDisplay:
    """One JSON event a line, for machines."""

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        emit({"event": "progress", **asdict(progress)})


class PlainDisplay:
    """A line on each change of state, and one every few seconds; for pipes, files and CI."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label}: " if label else ""
        self._state = ("", "")
        self._time = -_PLAIN_SECONDS
        self._said = ""
        self._pending: Progress | None = None

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending is not None:
            self._say(self._pending)

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        state = (progress.state, progress.reason)
        if state == self._state and now - self._time < _PLAIN_SECONDS:
            self._pending = progress
            return
        self._state, self._time, self._pending = state, now, None
        self._say(progress)

    def _say(self, progress: Progress) -> None:
        line = self._label + progress.line()
        if line != self._said:
            say(line)
        self._said = line


class LiveDisplay:
    """A bar with the figures beside it, on a terminal."""

    def __init__(self, label: str = "run") -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
        )
        self._label = label
        self._bar = Progress(*columns)
        self._task = self._bar.add_task(label, total=1, figures="")

    def __enter__(self) -> LiveDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        running = progress.total > 0
        text = "  ".join(progress.figures()) if running else progress.line()
        self._bar.update(self._task, completed=progress.done, total=max(1, progress.total), figures=text)


def display(label: str, *, as_json: bool) -> Display:
    """The display that fits where standard output goes."""
    if as_json:
        return JsonDisplay()
    return LiveDisplay(label) if sys.stdout.isatty() else PlainDisplay(label)
