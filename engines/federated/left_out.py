"""Who was left out of rounds, and why: for logs, results, and the error of a run in which nobody could train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ...core.errors import RunFailedError
from .messages import is_declined

_HINT = "see rounds.jsonl in the run directory for each client's reason"
_NAMED, _MOST_REASONS = 5, 20


def group_by_reason(missing: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the clients of each reason."""
    found: dict[str, list[int]] = defaultdict(list)
    for client, why in missing.items():
        found[why].append(client)
    return dict(found)


def clients_text(clients: Collection[int]) -> str:
    """Return ``client 3`` or ``12 clients (0, 3, 4, 7, 9, …)``."""
    first = ", ".join(map(str, sorted(clients)[:_NAMED]))
    if len(clients) == 1:
        return f"client {first}"
    return f"{len(clients):,} clients ({first}{', …' if len(clients) > _NAMED else ''})"


def summary(history: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return which clients were left out of how many rounds, by reason, most rounds first; for a run's result."""
    clients: dict[str, set[int]] = defaultdict(set)
    rounds: dict[str, int] = defaultdict(int)
    for entry in history:
        for why, left_out in group_by_reason({int(c): why for c, why in entry["missing"].items()}).items():
            clients[why].update(left_out)
            rounds[why] += 1
    most = sorted(rounds, key=lambda why: (-rounds[why], why))
    found = {why: f"{clients_text(clients[why])} in {_rounds(rounds[why])}" for why in most[:_MOST_REASONS]}
    return found | ({"other reasons": f"{len(most) - _MOST_REASONS:,}"} if len(most) > _MOST_REASONS else {})


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count:,} rounds"


def check_useful(history: Collection[Mapping[str, Any]], population: int, *, ended: bool) -> None:
    """Check that the rounds so far have changed the model, or that later ones still may.

    Parameters
    ----------
    history : collection of dict
        The rounds' entries; ``unchanged`` is why a round has left the model as it was.
    population : int
        Number of clients.
    ended : bool
        Whether these are all rounds.

    Raises
    ------
    RunFailedError
        No round has changed the model, and all have ended or every client has said that it cannot train.
    """
    if not history or any("unchanged" not in entry for entry in history):
        return
    declined = {client for entry in history for client, why in entry["missing"].items() if is_declined(why)}
    if ended or len(declined) >= population:
        reasons = [f"{who}: {why}" for why, who in list(summary(history).items())[:3]]
        reasons = reasons or sorted({entry["unchanged"] for entry in history})[:3]
        raise RunFailedError(f"no round has changed the model ({'; '.join(reasons)})", hint=_HINT)
