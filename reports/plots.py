"""Plots of an experiment's arms with matplotlib: score over rounds and score over payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, StorageError
from .arms import averaged
from .curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Distinguishable with every common kind of color vision (Okabe and Ito, 2008); without yellow, too faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")


def draw_comparison(
    curves: Mapping[str, Mapping[int, Curve]], path: Path, *, title: str, score: str, share: bool = True
) -> None:
    """Plot the mean score of every arm over its seeds, with their range as a band, and write the figure to a file.

    Parameters
    ----------
    curves : Mapping
        Arm -> seed -> curve.
    path : Path
        The suffix selects the format: ``.png``, ``.svg``, ``.pdf``.
    title : str
    score : str
        Label of the score axis.
    share : bool
        Whether scores are shares of federated rounds, to be labeled in percent; else values at steps.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    StorageError
        The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (arm, by_seed) in enumerate(curves.items()):
        style = {"color": _COLORS[index % len(_COLORS)], "linestyle": _STYLES[index // len(_COLORS) % len(_STYLES)]}
        _over_rounds(left, arm, by_seed, style)
        _over_bytes(right, arm, by_seed, style)
    left.set(xlabel="round" if share else "step", ylabel=score)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.set(xlabel="payload, MB (both directions, all nodes)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    left.legend(frameon=False, loc="lower right" if share else "best")
    figure.suptitle(title, fontsize=11, wrap=True)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _over_rounds(axes: Axes, arm: str, by_seed: Mapping[int, Curve], style: dict[str, Any]) -> None:
    rounds, means = averaged(by_seed)
    _line(axes, rounds, means, arm, style)
    if len(by_seed) > 1:
        common = set(rounds)
        scores = [[s for r, s in zip(c.rounds, c.scores, strict=True) if r in common] for c in by_seed.values()]
        lows, highs = [min(row) for row in zip(*scores, strict=True)], [max(row) for row in zip(*scores, strict=True)]
        axes.fill_between(rounds, lows, highs, color=style["color"], alpha=0.1, linewidth=0)


def _over_bytes(axes: Axes, arm: str, by_seed: Mapping[int, Curve], style: dict[str, Any]) -> None:
    """Plot over the mean payload of the seeds, which hardly differs between them."""
    rounds, means = averaged(by_seed)
    by_round = [dict(zip(c.rounds, c.payload, strict=True)) for c in by_seed.values()]
    megabytes = [sum(payload[r] for payload in by_round) / len(by_round) / 1e6 for r in rounds]
    _line(axes, megabytes, means, arm, style)


def _line(axes: Axes, x: Sequence[float], means: Sequence[float], arm: str, style: dict[str, Any]) -> None:
    axes.plot(
        x, means, label=arm, linewidth=1.8, marker="o" if len(x) == 1 else "", **style
    )  # a single point has no line
