"""Template filters that format metrics, times and settings for the dashboard's pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...reports.units import size, span

_SECRET = re.compile(r"(^|[_-])(password|passphrase|secret|token|credentials?|(api|private|access)_?key)$", re.I)
#: Limits of displayed settings: characters of a string, nesting depth, entries of a list or mapping.
_MAX_LENGTH, _MAX_DEPTH, _MAX_ENTRIES = 300, 8, 200
#: Progress values of every run; the others are the method's own.
_COMMON_METRICS = frozenset({"payload_up", "payload_down", "frame_up", "frame_down", "unit", "ok", "late", "failed"})


#: Labels of the directions for rates summed over nodes.
DIRECTION_LABELS = {"up": "↑ from nodes", "down": "↓ to nodes", "peer": "↔ between nodes"}


def rate(value: float) -> str:
    """Format bytes per second: ``1.20 MB/s``; a dash for zero."""
    return f"{size(value)}/s" if value >= 0.5 else "–"


def local_time(seconds: float) -> str:
    """Format seconds since 1970 as local date and time; a dash for 0."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "–"


def time_of_day(seconds: float) -> str:
    """Format seconds since 1970 as local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def iso_time(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def number(value: float, name: str = "") -> str:
    """Format a metric with four significant digits; bytes and seconds, recognized by ``name``, with a unit."""
    if "bytes" in name or name.startswith(("payload", "frame_", "dense")):
        return size(value)
    if name.endswith("seconds"):
        return span(value)
    whole = float(value).is_integer() and abs(value) < 1e9
    return f"{int(value):,}" if whole else f"{value:.4g}"


def method_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of the method's own progress metrics, at most three."""
    own = [(name, value) for name, value in metrics.items() if name not in _COMMON_METRICS and _is_scalar(value)]
    return [(n, number(v, n) if isinstance(v, int | float) else str(v)[:40]) for n, v in own][:3]


def client_counts(metrics: Mapping[str, Any]) -> str:
    """Format how many clients of the last round replied, were late or failed; empty if unknown."""
    counts = ((name, metrics.get(name)) for name in ("ok", "late", "failed"))
    return ", ".join(f"{count:.0f} {name}" for name, count in counts if isinstance(count, int | float))


def polyline(points: Sequence[tuple[int, float]]) -> str:
    """Scale the points of a curve to a box of 100 by 30, as the ``points`` of an SVG ``polyline``."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, width = steps[0], (steps[-1] - steps[0]) or 1
    low, high = min(values), max(values)
    height = (high - low) or 1.0
    return " ".join(f"{100 * (s - left) / width:.1f},{28 - 26 * (v - low) / height:.1f}" for s, v in points)


def redacted_settings(value: Any, depth: int = 0) -> Any:
    """Hide secrets, recognized by their names, and truncate long values in a run's settings."""
    if isinstance(value, Mapping):
        if depth >= _MAX_DEPTH:
            return "…"
        hidden = {name: "(hidden)" if _SECRET.search(str(name)) and entry else entry for name, entry in value.items()}
        return {name: redacted_settings(entry, depth + 1) for name, entry in list(hidden.items())[:_MAX_ENTRIES]}
    if isinstance(value, list | tuple):
        return ["…"] if depth >= _MAX_DEPTH else [redacted_settings(entry, depth + 1) for entry in value[:_MAX_ENTRIES]]
    if isinstance(value, str) and len(value) > _MAX_LENGTH:
        return f"{value[:_MAX_LENGTH]}… ({len(value):,} characters)"
    return value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "direction_label": DIRECTION_LABELS.__getitem__,
    "rate": rate,
    "local_time": local_time,
    "time_of_day": time_of_day,
    "iso_time": iso_time,
    "number": number,
    "method_metrics": method_metrics,
    "client_counts": client_counts,
    "polyline": polyline,
    "redacted_settings": redacted_settings,
}
