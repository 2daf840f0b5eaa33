"""Bounds on text and JSON from peers, users and methods, applied where they enter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Characters of a configuration as JSON; nodes receive it in one message.
MAX_CONFIG = 3 << 20
#: Characters of a result as JSON on the server; ``result.json`` in the run directory has all of it.
MAX_RESULT = 256 << 10
#: Characters of an error or a reason, of a traceback, and of one line of a log.
MAX_ERROR, MAX_TRACEBACK, MAX_LINE = 2_000, 64_000, 16_000
#: Characters of a name: of a method, a data set, a role, a metric.
MAX_NAME = 200
#: Values of a progress report, and characters of its texts.
MAX_VALUES, MAX_VALUE = 100, 200


def cut(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of ``text``, and how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def cut_start(text: str, limit: int) -> str:
    """As :func:`cut`, keeping the end: for tracebacks, whose last lines say what failed."""
    return text if len(text) <= limit else f"({len(text) - limit:,} more characters) …{text[-limit:]}"


def cut_json(text: str, limit: int, where: str) -> str:
    """Return a JSON object in at most about ``limit`` characters; its largest values are replaced by their length.

    Parameters
    ----------
    text : str
        A JSON object, or empty.
    limit : int
        Characters.
    where : str
        Where the whole value is.
    """
    if len(text) <= limit:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return json.dumps({"left out": f"{len(text):,} characters; see {where}"})
    parts = {str(name): json.dumps(entry) for name, entry in value.items()}
    left, room, kept = 0, limit - 200, {}
    for name, part in sorted(parts.items(), key=lambda item: len(item[0]) + len(item[1])):
        room -= len(name) + len(part) + 6
        if room >= 0:
            kept[name] = value[name]
        elif room + len(part) >= 100:
            room += len(part) - 100
            kept[name] = f"({len(part):,} characters; see {where})"
        else:
            left += 1
    shown = {name: kept[name] for name in map(str, value) if name in kept}
    return json.dumps(shown | ({"left out": f"{left:,} values; see {where}"} if left else {}))


def bounded_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bound the values of a progress report: their number, their names, and texts in them."""
    found = {}
    for name, value in list(values.items())[:MAX_VALUES]:
        if isinstance(value, str):
            value = cut(value, MAX_VALUE)
        elif isinstance(value, Mapping):
            value = {cut(str(key), MAX_NAME): v for key, v in list(value.items())[:MAX_VALUES]}
            value = {
                key: dict(list(v.items())[:MAX_VALUES]) if isinstance(v, Mapping) else v for key, v in value.items()
            }
        found[cut(str(name), MAX_NAME)] = value
    return found
