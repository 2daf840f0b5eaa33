"""What a run's accuracies are summed up to (specification of VHL, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rounds_to(history: Sequence[dict[str, Any]], target: float, score: str = "acc") -> int | None:
    """The first round whose score reaches ``target``; None if none did."""
    return next((entry["round"] for entry in history if entry.get(score, -1.0) >= target), None)


def speed_up(baseline: int | None, rounds: int | None) -> float | None:
    """How many times fewer ``rounds`` to a target are than the ``baseline``'s; None if either never reached it."""
    return baseline / rounds if baseline and rounds else None


def summary(history: Sequence[dict[str, Any]], targets: Sequence[float]) -> dict[str, Any]:
    """The last round's, the best and the last ten scored rounds' mean accuracy, over all outputs and over natural ones.

    ``rounds_to`` has an entry per target, None where it was not reached.
    """
    found: dict[str, Any] = {}
    for score in ("acc", "acc_nat"):
        values = [entry[score] for entry in history if score in entry]
        found[score] = values[-1]
        found[f"{score}_best"] = max(values)
        found[f"{score}_last10"] = sum(values[-10:]) / len(values[-10:])
    return found | {"rounds_to": {f"{target:g}": rounds_to(history, target) for target in targets}}
