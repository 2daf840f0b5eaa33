"""Arms of a comparison, each run with several seeds: means, spreads, and what it took to reach a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from .curves import Curve, speed_up


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds; the sample standard deviation is None for one seed."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Mean and spread of at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm over its seeds.

    Attributes
    ----------
    name : str
    seeds : int
    best, last10 : Spread
        Of the score, a share of one: highest round, mean of the last ten scored rounds.
    payload : float
        Mean payload bytes of a whole run.
    reached : int
        Seeds that reached their target; None where there is no target.
    rounds_to, payload_to : float or None
        Medians over the seeds that reached it.
    speed_up : float or None
        Rounds of the baseline over this arm's, with the same seed: the median over the seeds that reached the target.
    seconds : float or None
        Mean simulated time of a whole run; None where nothing told it.
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
        """JSON-able."""
        return asdict(self)


def compare(curves: Mapping[str, Mapping[int, Curve]], baseline: str = "") -> list[Arm]:
    """Sum up every arm.

    Parameters
    ----------
    curves : Mapping
        Arm -> seed -> curve.
    baseline : str
        The arm that sets the target of each seed: its own best score with that seed, rounded down to a whole percent
        (as VHL's literature does). Empty: no target.
    """
    targets = {seed: percent(curve.best) for seed, curve in curves[baseline].items()} if baseline else {}
    firsts = {seed: _rounds_to(curve, targets[seed]) for seed, curve in curves[baseline].items()} if baseline else {}
    return [_arm(name, by_seed, targets, firsts) for name, by_seed in curves.items()]


def percent(score: float) -> float:
    """A share of one, rounded down to a whole percent."""
    return math.floor(100 * score + 1e-9) / 100


def _rounds_to(curve: Curve, target: float) -> int | None:
    hit = curve.reaches(target)
    return None if hit is None else hit[0]


def _arm(
    name: str, by_seed: Mapping[int, Curve], targets: Mapping[int, float], firsts: Mapping[int, int | None]
) -> Arm:
    found = [curve.reaches(targets[seed]) for seed, curve in by_seed.items() if seed in targets]
    hits = [hit for hit in found if hit is not None]
    pairs = ((firsts.get(seed), _rounds_to(curve, targets[seed])) for seed, curve in by_seed.items() if seed in targets)
    ratios = [ratio for pair in pairs if (ratio := speed_up(*pair)) is not None]
    return Arm(
        name,
        len(by_seed),
        Spread.of([c.best for c in by_seed.values()]),
        Spread.of([c.last() for c in by_seed.values()]),
        fmean(c.payload[-1] for c in by_seed.values()),
        len(hits) if targets else None,
        median(rounds for rounds, _ in hits) if hits else None,
        median(payload for _, payload in hits) if hits else None,
        fmean(c.seconds[-1] for c in by_seed.values()) if all(c.seconds for c in by_seed.values()) else None,
        median(ratios) if ratios else None,
    )


def averaged(by_seed: Mapping[int, Curve]) -> tuple[list[int], list[float]]:
    """Rounds that every seed has scored, and their mean scores."""
    scored = [dict(zip(c.rounds, c.scores, strict=True)) for c in by_seed.values()]
    rounds = sorted(set.intersection(*(set(s) for s in scored)))
    return rounds, [fmean(s[r] for s in scored) for r in rounds]


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(scores: list[float], low: float, high: float, width: int = 24) -> str:
    """Scores as a row of blocks, at most ``width``; ``low`` is the lowest block and ``high`` the highest."""
    count = min(width, len(scores))
    cells = [scores[i * len(scores) // count : (i + 1) * len(scores) // count] for i in range(count)]
    steps = len(_BLOCKS) - 1
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round(min(1.0, max(0.0, (fmean(cell) - low) / span)) * steps)] for cell in cells)
