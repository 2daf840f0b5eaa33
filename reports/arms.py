"""Statistics of the arms of an experiment over their seeds: mean scores, spread, rounds and bytes to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from .curves import Curve, speed_up


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of a value over seeds; ``sd`` is None for one seed."""

    mean: float
    sd: float | None

    @classmethod
    def from_values(cls, values: list[float]) -> Spread:
        """Compute from at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True)
class Arm:
    """Statistics of one arm over its seeds.

    Attributes
    ----------
    name : str
    seeds : int
    best, last10 : Spread
        The score, in [0, 1]: of the best round, and the mean of the last ten scored rounds.
    payload : float
        Mean payload bytes per run.
    reached : int
        Number of seeds that reached their target; None if there is no target.
    rounds_to, payload_to : float or None
        Rounds and payload bytes to the target: medians over the seeds that reached it.
    speed_up : float or None
        Rounds of the baseline / rounds of this arm with the same seed: median over the seeds that reached the target.
    seconds : float or None
        Mean simulated time per run; None if a run did not record it.
    """

    name: str
    seeds: int
    best: Spread
    last10: Spread
    payload: float
    reached: int | None
    rounds_to: float | None
    payload_to: float | None
    seconds: float | None = None
    speed_up: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return asdict(self)


def compare(curves: Mapping[str, Mapping[int, Curve]], baseline: str = "") -> list[Arm]:
    """Compute the statistics of every arm.

    Parameters
    ----------
    curves : Mapping
        Arm -> seed -> curve.
    baseline : str
        The arm that sets the target of each seed: its best score with that seed, rounded down to a whole percent (as
        in the literature on VHL). Empty: no target.
    """
    targets = {seed: percent(curve.best) for seed, curve in curves[baseline].items()} if baseline else {}
    references = (
        {seed: _rounds_to(curve, targets[seed]) for seed, curve in curves[baseline].items()} if baseline else {}
    )
    return [_arm(name, by_seed, targets, references) for name, by_seed in curves.items()]


def percent(score: float) -> float:
    """Round a score in [0, 1] down to a whole percent."""
    return math.floor(100 * score + 1e-9) / 100


def _rounds_to(curve: Curve, target: float) -> int | None:
    hit = curve.reaches(target)
    return None if hit is None else hit[0]


def _arm(
    name: str, by_seed: Mapping[int, Curve], targets: Mapping[int, float], references: Mapping[int, int | None]
) -> Arm:
    found = [curve.reaches(targets[seed]) for seed, curve in by_seed.items() if seed in targets]
    hits = [hit for hit in found if hit is not None]
    pairs = (
        (references.get(seed), _rounds_to(curve, targets[seed])) for seed, curve in by_seed.items() if seed in targets
    )
    ratios = [ratio for pair in pairs if (ratio := speed_up(*pair)) is not None]
    return Arm(
        name,
        len(by_seed),
        Spread.from_values([c.best for c in by_seed.values()]),
        Spread.from_values([c.last() for c in by_seed.values()]),
        fmean(c.payload[-1] for c in by_seed.values()),
        len(hits) if targets else None,
        median(rounds for rounds, _ in hits) if hits else None,
        median(payload for _, payload in hits) if hits else None,
        fmean(c.seconds[-1] for c in by_seed.values()) if all(c.seconds for c in by_seed.values()) else None,
        median(ratios) if ratios else None,
    )


def averaged(by_seed: Mapping[int, Curve]) -> tuple[list[int], list[float]]:
    """Return the rounds that all seeds have scores of, and their mean scores."""
    scored = [dict(zip(c.rounds, c.scores, strict=True)) for c in by_seed.values()]
    rounds = sorted(set.intersection(*(set(s) for s in scored)))
    return rounds, [fmean(s[r] for s in scored) for r in rounds]


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(scores: list[float], low: float, high: float, width: int = 24) -> str:
    """Draw scores as a row of at most ``width`` block characters, scaled from ``low`` to ``high``."""
    count = min(width, len(scores))
    cells = [scores[i * len(scores) // count : (i + 1) * len(scores) // count] for i in range(count)]
    steps = len(_BLOCKS) - 1
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round(min(1.0, max(0.0, (fmean(cell) - low) / span)) * steps)] for cell in cells)
