"""The final values of a run's metrics, its bytes and its virtual time, averaged over the seeds of an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..runs.directory import RunDirectory
from .account import Account
from .arms import Spread

#: Entries of a line of metrics that are none.
_NOT_METRICS = ("step", "time", "simulated_seconds")


@dataclass(frozen=True, slots=True)
class ArmValues:
    """Figures of one arm over its seeds.

    Attributes
    ----------
    values : Mapping of Spread
        The last value of each metric, and each number in the result, that all runs have.
    payload, frame : float
        Mean bytes per run.
    seconds : float or None
        Mean virtual time per run; None if a run did not keep it.
    """

    name: str
    seeds: int
    values: Mapping[str, Spread]
    payload: float
    frame: float
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return asdict(self)


def read_values(name: str, runs: Sequence[RunDirectory]) -> ArmValues:
    """Read the figures of an arm from its finished runs, one per seed.

    Raises
    ------
    StorageError
        A file cannot be read.
    """
    finals = [_last_values(run) for run in runs]
    shared = [metric for metric in finals[0] if all(metric in final for final in finals)]
    totals = [_bytes(run) for run in runs]
    seconds = [found for run in runs if (found := _virtual_seconds(run)) is not None]
    return ArmValues(
        name,
        len(runs),
        {metric: Spread.from_values([final[metric] for final in finals]) for metric in shared},
        fmean(payload for payload, _ in totals),
        fmean(frame for _, frame in totals),
        fmean(seconds) if len(seconds) == len(runs) else None,
    )


def main_metric(arms: Sequence[ArmValues]) -> str:
    """Return the metric to draw: the loss, or else the first that all arms have; empty if there is none."""
    shared = [metric for metric in arms[0].values if all(metric in arm.values for arm in arms)]
    return "loss" if "loss" in shared else next(iter(shared), "")


def _last_values(run: RunDirectory) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in run.read_metrics():
        values |= {name: value for name, value in line.items() if name not in _NOT_METRICS and value is not None}
    result = run.result or {}
    return values | {name: float(value) for name, value in result.items() if type(value) in (int, float)}


def _virtual_seconds(run: RunDirectory) -> float | None:
    time = (run.result or {}).get("simulated_time")
    return float(time["seconds"]) if time else None


def _bytes(run: RunDirectory) -> tuple[int, int]:
    """Return payload and frame bytes."""
    rows = Account.read(run.path).by("direction")
    return sum(row["payload_bytes"] for row in rows), sum(row["frame_bytes"] for row in rows)
