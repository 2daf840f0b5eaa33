"""Progress display of long commands: a live bar on a terminal, plain lines elsewhere, or JSON events.

Used by real runs, simulations and the demo. Shows the round or step, clients, loss, seconds, bytes up and down, and the
estimated time left.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..core.text import printable
from ..reports.units import size
from .output import duration, emit, say

#: Terminal states of a run.
ENDED = frozenset({"finished", "failed", "cancelled", "interrupted"})
_PLAIN_SECONDS = 5.0
_WINDOW = 32


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run.

    Attributes
    ----------
    state, reason : str
        The run's state and the reason for it.
    done, total : int
        Completed and total steps or rounds.
    loss : float or None
        As reported by the method.
    up_bytes, down_bytes : int or None
        Frame bytes so far; None if nothing is sent over a wire.
    rate : float
        Recent steps per second; 0 while unknown.
    unit : str
        What is counted: ``step`` or ``round``.
    accuracy : float or None
        Between 0 and 1.
    clients : str
        Clients of the last round by outcome: ok, late, failed.
    seconds : float or None
        Duration of the last round.
    running, failed : str
        Of a queue: where its items are in progress, and how many have failed and why.
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
    running: str = ""
    failed: str = ""

    @property
    def eta(self) -> float | None:
        """Estimated seconds left, or None while unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None

    def line(self) -> str:
        """Format the progress as one line."""
        if self.state not in ("running", *ENDED) or not self.total:
            return f"{self.state}{': ' if self.reason else ''}{self.reason}"
        parts = [f"{self.unit} {self.done}/{self.total}", *self.values()]
        return "  ".join(parts)

    def values(self) -> list[str]:
        """Format the known values: clients, loss, accuracy, rate, bytes and time left."""
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
        parts += [f"running {self.running}"] if self.running else []
        parts += [self.failed] if self.failed else []
        return parts


class Rate:
    """Steps per second over a sliding window."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def at(self, done: int, now: float) -> float:
        """Record ``done`` completed steps at monotonic time ``now`` (seconds); returns the rate, 0 if unknown."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()  # restarted from a checkpoint
        # The time before the first step includes loading models.
        if done and (not self._samples or done > self._samples[-1][1]):
            self._samples.append((now, done))
        if len(self._samples) < 2:
            return 0.0
        (first, start), (last, end) = self._samples[0], self._samples[-1]
        return (end - start) / max(1e-9, last - first)


class Meter:
    """Converts the progress reports of one run to :class:`Progress`."""

    def __init__(self) -> None:
        self._rate = Rate()

    def read(
        self, done: int, total: int, values: Mapping[str, Any], now: float, state: str = "running", reason: str = ""
    ) -> Progress:
        """Convert a report received at monotonic time ``now`` (seconds).

        ``values`` holds what a method reports with its progress (``loss``, ``acc``, ``unit``, ``seconds``, ``ok``,
        ``late``, ``failed``), and bytes (``frame_up``, ``frame_down``) if the run sends any.
        """
        counts = [(values.get(name), name) for name in ("ok", "late", "failed")]
        return Progress(
            state,
            reason,
            done,
            total,
            _number(values, "loss"),
            _bytes(values, "frame_up"),
            _bytes(values, "frame_down"),
            self._rate.at(done, now),
            str(values.get("unit", "step")),
            _number(values, "acc"),
            ", ".join(f"{count:.0f} {name}" for count, name in counts if isinstance(count, int | float)),
            _number(values, "seconds"),
            str(values.get("running", "")),
            _failed_items(values),
        )


def _failed_items(values: Mapping[str, Any]) -> str:
    count = _number(values, "failed_items")
    return f"{count:.0f} failed ({values.get('why', '')})" if count else ""


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else None


def _bytes(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else int(value)


class Display(Protocol):
    """Displays progress; a context manager, so that the terminal is restored."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """Show the latest progress."""


class JsonDisplay:
    """Prints one JSON event per line."""

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        emit({"event": "progress", **asdict(progress)})


class PlainDisplay:
    """Prints a line on each change of state and every few seconds; for pipes, files and CI."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label}: " if label else ""
        self._state = ("", "")
        self._printed_at = -_PLAIN_SECONDS
        self._last_line = ""
        self._pending: Progress | None = None

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending is not None:
            self._print(self._pending)

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        state = (progress.state, progress.reason)
        if state == self._state and now - self._printed_at < _PLAIN_SECONDS:
            self._pending = progress
            return
        self._state, self._printed_at, self._pending = state, now, None
        self._print(progress)

    def _print(self, progress: Progress) -> None:
        line = self._label + progress.line()
        if line != self._last_line:
            say(line)
        self._last_line = line


class LiveDisplay:
    """Shows a progress bar and the current values on a terminal."""

    def __init__(self, label: str = "run") -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}", markup=False),
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
        text = printable("  ".join(progress.values()) if running else progress.line(), lines=False)
        self._bar.update(self._task, completed=progress.done, total=max(1, progress.total), figures=text)


def display(label: str, *, as_json: bool) -> Display:
    """Create the display for standard output: JSON, a terminal, or a pipe."""
    if as_json:
        return JsonDisplay()
    return LiveDisplay(label) if sys.stdout.isatty() else PlainDisplay(label)
