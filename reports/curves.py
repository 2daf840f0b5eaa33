"""A score over the rounds of a run and over the bytes that it had cost by then."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

from ..core.errors import DataError
from ..runs.directory import RunDirectory
from .account import ONCE, Account

_EVERY_ROUND = 1 << 62


@dataclass(frozen=True, slots=True)
class Curve:
    """The scored rounds of one run.

    Attributes
    ----------
    rounds : tuple of int
        Ascending.
    scores : tuple of float
        Of those rounds.
    payload : tuple of int
        Payload bytes of all nodes and both directions, from the beginning to the end of each of those rounds.
    seconds : tuple of float
        Simulated time at their ends; empty where nothing told it.
    """

    rounds: tuple[int, ...]
    scores: tuple[float, ...]
    payload: tuple[int, ...]
    seconds: tuple[float, ...] = ()

    @property
    def best(self) -> float:
        """The highest score."""
        return max(self.scores)

    def last(self, count: int = 10) -> float:
        """Mean of the last ``count`` scores; of all where there are fewer."""
        return fmean(self.scores[-count:])

    def reaches(self, target: float) -> tuple[int, int] | None:
        """The first round whose score is at least ``target``, and the payload bytes until then; None if none is."""
        found = (place for place, score in enumerate(self.scores) if score >= target)
        place = next(found, None)
        return None if place is None else (self.rounds[place], self.payload[place])


def speed_up(baseline: int | None, rounds: int | None) -> float | None:
    """How many times fewer ``rounds`` to a target are than the ``baseline``'s; None if either never reached it."""
    return baseline / rounds if baseline and rounds else None


def read_curve(run: RunDirectory, score: str, account: Account | None = None) -> Curve:
    """The curve of a run, from its metrics and its ledger.

    An ``account`` whose windows are single rounds saves reading the ledger again.

    Raises
    ------
    DataError
        The run has no such score.
    StorageError
        A file cannot be read.
    """
    # A round that was done again after a restart counts once, as it came out last.
    lines = [line for line in run.read_metrics() if line.get(score) is not None]
    scores = {int(line["step"]): line[score] for line in lines}
    seconds = {int(line["step"]): line["simulated_seconds"] for line in lines if "simulated_seconds" in line}
    if not scores:
        raise DataError(f"the run {run.path.name} has no figure called '{score}'")
    rounds = sorted(scores)
    told = tuple(seconds[r] for r in rounds) if seconds.keys() == scores.keys() else ()
    return Curve(tuple(rounds), tuple(scores[r] for r in rounds), tuple(_payload_until(run, rounds, account)), told)


def _payload_until(run: RunDirectory, rounds: Sequence[int], account: Account | None) -> list[int]:
    """Sums of the method's own messages, each counted once, up to each of ``rounds``."""
    if account is not None and account.paid is not None:
        paid = [0, *accumulate(account.paid.tolist())]
        return [paid[min(max(0, number - account.periods.first + 1), len(paid) - 1)] for number in rounds]
    if account is None or account.periods.width > 1:
        account = Account.read(run.path, windows=_EVERY_ROUND)
    sums = account.by("window", parts=[ONCE])
    sent = [account.periods.span(row["window"])[1] for row in sums]
    ends = list(accumulate(row["payload_bytes"] for row in sums))
    places = [bisect_right(sent, number) for number in rounds]
    return [ends[place - 1] if place else 0 for place in places]
