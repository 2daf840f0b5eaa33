"""JSON as the standard has it: Python's own writes NaN and infinities, which other programs cannot read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON, non-finite numbers as ``null``; ``options`` are those of :func:`json.dumps`.

    Raises
    ------
    TypeError
        It is not JSON-serializable.
    """
    return json.dumps(replace_non_finite(value), allow_nan=False, **options)


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinities in ``value`` by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(entry) for entry in value]
    return value
