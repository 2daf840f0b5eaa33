"""What a run's accuracies are summed up to (specification of VHL, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rounds_to(history: Sequence[dict[str, Any]], target: float, score: str = "acc") -> int | None:
    """The first round whose score reaches ``target``; None if none did."""
    return next((int(entry["round"]) for entry in history if entry.get(score, -1.0) >= target), None)


def bytes_to(history: Sequence[dict[str, Any]], target: float, score: str = "acc") -> int | None:
    """Payload bytes, up and down, from the beginning to the end of that round; None if none was, or nobody counted."""
    last = rounds_to(history, target, score)
    spent = [entry for entry in history if last is not None and entry["round"] <= last]
    if not spent or any("payload_up" not in entry for entry in spent):
        return None
    return sum(int(entry["payload_up"]) + int(entry["payload_down"]) for entry in spent)


def summary(history: Sequence[dict[str, Any]], targets: Sequence[float]) -> dict[str, Any]:
    """The last round's, the best and the last ten scored rounds' mean accuracy, over all outputs and over natural ones.

    ``rounds_to`` and ``bytes_to`` have an entry per target, None where it was not reached.
    """
    found: dict[str, Any] = {}
    for score in ("acc", "acc_nat"):
        values = [entry[score] for entry in history if score in entry]
        found[score] = values[-1]
        found[f"{score}_best"] = max(values)
        found[f"{score}_last10"] = sum(values[-10:]) / len(values[-10:])
    told = {"rounds_to": rounds_to, "bytes_to": bytes_to}
    return found | {name: {f"{target:g}": of(history, target) for target in targets} for name, of in told.items()}
