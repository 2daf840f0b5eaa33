"""Score curves: a run's score over its rounds and over the cumulative payload bytes."""

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
        The score of each of these rounds.
    payload : tuple of int
        Cumulative payload bytes of all nodes and directions at the end of each of these rounds.
    seconds : tuple of float
        Simulated time at the end of each of these rounds; empty if it was not recorded.
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
        """Mean of the last ``count`` scores, or of all if there are fewer."""
        return fmean(self.scores[-count:])

    def reaches(self, target: float) -> tuple[int, int] | None:
        """First round whose score is at least ``target`` and its cumulative payload bytes, or None."""
        found = (index for index, score in enumerate(self.scores) if score >= target)
        index = next(found, None)
        return None if index is None else (self.rounds[index], self.payload[index])


def speed_up(baseline: int | None, rounds: int | None) -> float | None:
    """Rounds of the ``baseline`` to a target / ``rounds`` to it; None if either never reached it."""
    return baseline / rounds if baseline and rounds else None


def read_curve(run: RunDirectory, score: str, account: Account | None = None) -> Curve:
    """Read the curve of a run from its metrics and its ledger.

    Parameters
    ----------
    run : RunDirectory
    score : str
        Name of the metric.
    account : Account, optional
        Sums of the run's ledger, if it has been read already.

    Raises
    ------
    DataError
        The run has no metric of that name.
    StorageError
        A file cannot be read.
    """
    # A round that was repeated after a restart counts once, with its last score.
    lines = [line for line in run.read_metrics() if line.get(score) is not None]
    scores = {int(line["step"]): line[score] for line in lines}
    seconds = {int(line["step"]): line["simulated_seconds"] for line in lines if "simulated_seconds" in line}
    if not scores:
        raise DataError(f"run {run.path.name} has no metric '{score}'")
    account = account or Account.read(run.path)
    rounds = sorted(scores)
    times = tuple(seconds[r] for r in rounds) if seconds.keys() == scores.keys() else ()
    return Curve(tuple(rounds), tuple(scores[r] for r in rounds), tuple(account.payload_until(rounds)), times)
