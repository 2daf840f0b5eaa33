"""How figures and moments are told on the dashboard's pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...reports.units import size, span

_SECRET = re.compile(r"(^|[_-])(password|passphrase|secret|token|credentials?|(api|private|access)_?key)$", re.I)
_LONGEST, _DEEPEST, _MOST = 300, 8, 200
#: Figures that every run tells beside its method's own.
_COUNTED = frozenset({"payload_up", "payload_down", "frame_up", "frame_down", "unit", "ok", "late", "failed"})


#: Directions as they are told of all nodes together.
FLOWS = {"up": "↑ from nodes", "down": "↓ to nodes", "peer": "↔ between nodes"}


def speed(value: float) -> str:
    """Bytes per second: ``1.20 MB/s``; a dash for none."""
    return f"{size(value)}/s" if value >= 0.5 else "–"


def moment(seconds: float) -> str:
    """Seconds since 1970 as this machine's local time; a dash where there is none."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "–"


def clock(seconds: float) -> str:
    """The same with seconds, without the day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def stamp(seconds: float) -> str:
    """The same for machines."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def figure(value: float, name: str = "") -> str:
    """A metric's value with four significant digits; one that counts bytes or seconds, with its unit."""
    if "bytes" in name or name.startswith(("payload", "frame_", "dense")):
        return size(value)
    if name.endswith("seconds"):
        return span(value)
    whole = float(value).is_integer() and abs(value) < 1e9
    return f"{int(value):,}" if whole else f"{value:.4g}"


def own_figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a method tells with its progress, the first three of it."""
    own = [(name, value) for name, value in figures.items() if name not in _COUNTED]
    told = [(n, figure(v, n) if isinstance(v, int | float) else str(v)[:40]) for n, v in own if _tellable(v)]
    return told[:3]


def answers(figures: Mapping[str, Any]) -> str:
    """How many clients of the last round answered, were late or failed; empty where nothing tells."""
    counts = ((name, figures.get(name)) for name in ("ok", "late", "failed"))
    return ", ".join(f"{count:.0f} {name}" for name, count in counts if isinstance(count, int | float))


def line(points: Sequence[tuple[int, float]]) -> str:
    """Points of a curve in a box of 100 by 30, for an SVG ``polyline``."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, wide = steps[0], (steps[-1] - steps[0]) or 1
    low, high = min(values), max(values)
    tall = (high - low) or 1.0
    return " ".join(f"{100 * (s - left) / wide:.1f},{28 - 26 * (v - low) / tall:.1f}" for s, v in points)


def settings(value: Any, depth: int = 0) -> Any:
    """A run's settings as they may be shown: what is called a secret is hidden, what is long is cut."""
    if isinstance(value, Mapping):
        if depth >= _DEEPEST:
            return "…"
        hidden = {name: "(hidden)" if _SECRET.search(str(name)) and entry else entry for name, entry in value.items()}
        return {name: settings(entry, depth + 1) for name, entry in list(hidden.items())[:_MOST]}
    if isinstance(value, list | tuple):
        return ["…"] if depth >= _DEEPEST else [settings(entry, depth + 1) for entry in value[:_MOST]]
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}… ({len(value):,} characters)"
    return value


def _tellable(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "flow": FLOWS.__getitem__,
    "speed": speed,
    "moment": moment,
    "clock": clock,
    "stamp": stamp,
    "figure": figure,
    "own_figures": own_figures,
    "answers": answers,
    "line": line,
    "settings": settings,
}
