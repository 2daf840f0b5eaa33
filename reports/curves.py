"""A score over the rounds of a run and over the bytes that it had cost by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ..core.errors import DataError
from ..runs.directory import RunDirectory


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
    """

    rounds: tuple[int, ...]
    scores: tuple[float, ...]
    payload: tuple[int, ...]

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


def read_curve(run: RunDirectory, score: str) -> Curve:
    """The curve of a run, from its metrics and its ledger.

    Raises
    ------
    DataError
        The run has no such score.
    StorageError
        A file cannot be read.
    """
    # A round that was done again after a restart counts once, as it came out last.
    scores = {int(line["step"]): line[score] for line in run.read_metrics() if line.get(score) is not None}
    if not scores:
        raise DataError(f"the run {run.path.name} has no figure called '{score}'")
    rounds = sorted(scores)
    return Curve(tuple(rounds), tuple(scores[r] for r in rounds), tuple(_payload_until(run, rounds)))


def _payload_until(run: RunDirectory, rounds: Sequence[int]) -> list[int]:
    import pyarrow.compute as pc

    table = run.read_ledger()
    sums = table.group_by("round").aggregate([("payload_bytes", "sum")]).sort_by("round")
    ends = pc.cumulative_sum(sums["payload_bytes_sum"]).to_pylist()
    known = dict(zip(sums["round"].to_pylist(), ends, strict=True))
    so_far, found, pending = 0, [], sorted(known)
    for number in rounds:
        while pending and pending[0] <= number:
            so_far = known[pending.pop(0)]
        found.append(so_far)
    return found
