"""How compared arms are told: a table of scores, rounds and bytes, with each arm's rounds as a row of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..reports.units import size
from .output import duration, table

if TYPE_CHECKING:
    from ..reports.arms import Arm, Spread
    from ..reports.curves import Curve


def show_comparison(arms: Sequence[Arm], curves: Mapping[str, Mapping[int, Curve]], baseline: str) -> None:
    """Print the table."""
    from ..reports.arms import averaged, sparkline

    means = {name: averaged(by_seed)[1] for name, by_seed in curves.items()}
    low, high = min(map(min, means.values())), max(map(max, means.values()))
    columns = ["arm", f"by round, {_percent(low)} to {_percent(high)}", "best", "last 10"]
    columns += [f"rounds to {baseline}'s best", "payload until then"] if baseline else []
    timed = any(arm.seconds is not None for arm in arms)
    columns += ["payload in all", *(["simulated time"] if timed else [])]
    rows = []
    for arm in arms:
        row = [arm.name, sparkline(means[arm.name], low, high), _spread(arm.best), _spread(arm.last10)]
        if baseline:
            row += [_rounds(arm), "–" if arm.payload_to is None else size(arm.payload_to)]
        row += [size(arm.payload)]
        rows.append([*row, *(["–" if arm.seconds is None else duration(arm.seconds)] if timed else [])])
    table(columns, rows, "nothing was compared")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _spread(value: Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd} %"


def _rounds(arm: Arm) -> str:
    """Median round, how many times fewer that is than the baseline's, and how many seeds got there."""
    if arm.rounds_to is None:
        return f"none of {arm.seeds}"
    some = "" if arm.reached == arm.seeds else f" ({arm.reached} of {arm.seeds})"
    faster = "" if arm.speed_up in (None, 1.0) else f", {arm.speed_up:.3g}x"
    return f"{arm.rounds_to:g}{faster}{some}"
