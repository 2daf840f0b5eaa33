"""Comparison of the arms of a simulation, by a score between 0 and 1 or by the final values of all metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..reports.units import size
from .output import duration, table

if TYPE_CHECKING:
    from ..reports.arms import Arm, Spread
    from ..reports.curves import Curve
    from ..reports.final_values import ArmValues
    from ..runs.directory import RunDirectory
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial


@dataclass(frozen=True)
class ScoreComparison:
    """Scores, rounds and bytes to the baseline's best score, and a sparkline of each arm.

    Attributes
    ----------
    curves : Mapping
        Arm -> seed -> score by round.
    """

    scenario: Scenario
    curves: Mapping[str, Mapping[int, Curve]]
    arms: Sequence[Arm]

    @classmethod
    def of(cls, scenario: Scenario, trials: Sequence[Trial]) -> Self:
        """Read finished trials."""
        from ..reports.arms import compare

        curves = _curves(_runs(trials), scenario.score)
        return cls(scenario, curves, compare(curves, scenario.baseline))

    def as_list(self) -> list[dict[str, Any]]:
        """Return a JSON-serializable list of the arms."""
        return [arm.as_dict() for arm in self.arms]

    def show(self) -> None:
        """Print the table."""
        show_comparison(self.arms, self.curves, self.scenario.baseline)

    def draw(self, path: Path) -> bool:
        """Write a figure; errors as :func:`~farshore.reports.plots.draw_comparison`."""
        from ..reports.plots import draw_comparison

        title = self.scenario.about or self.scenario.method
        draw_comparison(self.curves, path, title=title, score=self.scenario.score)
        return True


@dataclass(frozen=True)
class ValueComparison:
    """The final values of the arms' metrics, their bytes and their virtual time."""

    scenario: Scenario
    runs: Mapping[str, Mapping[int, RunDirectory]]
    arms: Sequence[ArmValues]

    @classmethod
    def of(cls, scenario: Scenario, trials: Sequence[Trial]) -> Self:
        """Read finished trials."""
        from ..reports.final_values import read_values

        runs = _runs(trials)
        return cls(scenario, runs, [read_values(arm, list(by_seed.values())) for arm, by_seed in runs.items()])

    def as_list(self) -> list[dict[str, Any]]:
        """Return a JSON-serializable list of the arms."""
        return [arm.as_dict() for arm in self.arms]

    def show(self) -> None:
        """Print the table."""
        names = list(dict.fromkeys(name for arm in self.arms for name in arm.values))
        timed = any(arm.seconds is not None for arm in self.arms)
        rows = [[name, *(_value(arm.values.get(name)) for arm in self.arms)] for name in names]
        rows.append(["payload in all", *(size(arm.payload) for arm in self.arms)])
        rows.append(["frames in all", *(size(arm.frame) for arm in self.arms)])
        if timed:
            rows.append(["simulated time", *("–" if a.seconds is None else f"{a.seconds:.4g} s" for a in self.arms)])
        table(["", *(arm.name for arm in self.arms)], rows, "no arms to compare")

    def draw(self, path: Path) -> bool:
        """Write a figure of one metric, the loss if there is one; False if the arms share no metric."""
        from ..reports.final_values import main_metric
        from ..reports.plots import draw_comparison

        if not (metric := main_metric(self.arms)):
            return False
        title = self.scenario.about or self.scenario.method
        draw_comparison(_curves(self.runs, metric), path, title=title, score=metric, share=False)
        return True


def _runs(trials: Sequence[Trial]) -> dict[str, dict[int, RunDirectory]]:
    from ..runs.directory import RunDirectory

    runs: dict[str, dict[int, RunDirectory]] = {}
    for trial in trials:
        runs.setdefault(trial.arm, {})[trial.seed] = RunDirectory(Path(trial.directory))
    return runs


def _curves(runs: Mapping[str, Mapping[int, RunDirectory]], metric: str) -> dict[str, dict[int, Curve]]:
    from ..reports.curves import read_curve

    return {arm: {seed: read_curve(run, metric) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}


def show_comparison(arms: Sequence[Arm], curves: Mapping[str, Mapping[int, Curve]], baseline: str) -> None:
    """Print the comparison table.

    Parameters
    ----------
    arms : sequence of Arm
    curves : mapping
        Arm name -> seed -> score by round.
    baseline : str
        Name of the arm that sets the target score; empty for none.
    """
    from ..reports.arms import averaged, sparkline

    means = {name: averaged(by_seed)[1] for name, by_seed in curves.items()}
    lowest, highest = min(map(min, means.values())), max(map(max, means.values()))
    columns = ["arm", f"by round, {_percent(lowest)} to {_percent(highest)}", "best", "last 10"]
    columns += [f"rounds to {baseline}'s best", "payload until then"] if baseline else []
    timed = any(arm.seconds is not None for arm in arms)
    columns += ["payload in all", *(["simulated time"] if timed else [])]
    rows = []
    for arm in arms:
        row = [arm.name, sparkline(means[arm.name], lowest, highest), _spread(arm.best), _spread(arm.last10)]
        if baseline:
            row += [_rounds(arm), "–" if arm.payload_to is None else size(arm.payload_to)]
        row += [size(arm.payload)]
        rows.append([*row, *(["–" if arm.seconds is None else duration(arm.seconds)] if timed else [])])
    table(columns, rows, "no arms to compare")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _spread(value: Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd} %"


def _rounds(arm: Arm) -> str:
    """Format the median round that reached the target, the speed-up over the baseline, and how many seeds did."""
    if arm.rounds_to is None:
        return f"none of {arm.seeds}"
    reached = "" if arm.reached == arm.seeds else f" ({arm.reached} of {arm.seeds})"
    faster = "" if arm.speed_up in (None, 1.0) else f", {arm.speed_up:.3g}x"
    return f"{arm.rounds_to:g}{faster}{reached}"


def _value(value: Spread | None) -> str:
    if value is None:
        return "–"
    mean = f"{value.mean:.0f}" if value.mean == int(value.mean) else f"{value.mean:.4g}"
    return mean + (f" ± {value.sd:.2g}" if value.sd else "")
