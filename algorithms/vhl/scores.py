"""Summary scores of a run: best, last-ten mean, rounds and bytes to a target (``docs/methods/vhl.md``, section 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rounds_to(history: Sequence[dict[str, Any]], target: float, score: str = "acc") -> int | None:
    """The first round whose score is at least ``target``, or None."""
    return next((int(entry["round"]) for entry in history if entry.get(score, -1.0) >= target), None)


def bytes_to(history: Sequence[dict[str, Any]], target: float, score: str = "acc") -> int | None:
    """Payload bytes, up and down, of all rounds until the target was reached.

    None if it was not reached, or if the history has no byte counts.
    """
    last = rounds_to(history, target, score)
    entries = [entry for entry in history if last is not None and entry["round"] <= last]
    if not entries or any("payload_up" not in entry for entry in entries):
        return None
    return sum(int(entry["payload_up"]) + int(entry["payload_down"]) for entry in entries)


def summary(history: Sequence[dict[str, Any]], targets: Sequence[float]) -> dict[str, Any]:
    """Last accuracy, best accuracy and mean of the last ten scored rounds, for ``acc`` and ``acc_nat``.

    ``rounds_to`` and ``bytes_to`` have an entry per target, None if it was not reached.
    """
    scores: dict[str, Any] = {}
    for score in ("acc", "acc_nat"):
        values = [entry[score] for entry in history if score in entry]
        scores[score] = values[-1]
        scores[f"{score}_best"] = max(values)
        scores[f"{score}_last10"] = sum(values[-10:]) / len(values[-10:])
    costs = {"rounds_to": rounds_to, "bytes_to": bytes_to}
    return scores | {name: {f"{target:g}": cost(history, target) for target in targets} for name, cost in costs.items()}
