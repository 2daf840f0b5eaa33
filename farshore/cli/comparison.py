"""The table that compares the arms of a simulation: scores, rounds, bytes, and a sparkline of each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..reports.units import size
from .output import duration, table

if TYPE_CHECKING:
    from ..reports.arms import Arm, Spread
    from ..reports.curves import Curve


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
