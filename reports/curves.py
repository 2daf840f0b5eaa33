"""A score over the rounds of a run and over the bytes that it had cost by then."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ..core.errors import DataError
from ..runs.directory import RunDirectory
from .account import Account


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

    An ``account`` of the run saves reading the ledger again.

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
    account = account or Account.read(run.path)
    rounds = sorted(scores)
    told = tuple(seconds[r] for r in rounds) if seconds.keys() == scores.keys() else ()
    return Curve(tuple(rounds), tuple(scores[r] for r in rounds), tuple(account.payload_until(rounds)), told)
