"""Pictures of a comparison: the score over rounds, and over the bytes that it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, StorageError
from .arms import averaged
from .curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart with every common kind of color vision (Okabe and Ito, 2008), without the yellow that white swallows.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")


def draw_comparison(curves: Mapping[str, Mapping[int, Curve]], path: Path, *, title: str, score: str) -> None:
    """Draw every arm's mean over its seeds, with the range of its seeds behind it, and write the picture.

    Parameters
    ----------
    curves : Mapping
        Arm -> seed -> curve.
    path : Path
        Its suffix says the format: ``.png``, ``.svg``, ``.pdf``.
    title, score : str

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
    for place, (arm, by_seed) in enumerate(curves.items()):
        style = {"color": _COLORS[place % len(_COLORS)], "linestyle": _STYLES[place // len(_COLORS) % len(_STYLES)]}
        _over_rounds(left, arm, by_seed, style)
        _over_bytes(right, arm, by_seed, style)
    left.set(xlabel="round", ylabel=score)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.set(xlabel="payload, MB (both directions, all nodes)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    left.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=11, wrap=True)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _over_rounds(axes: Axes, arm: str, by_seed: Mapping[int, Curve], style: dict[str, Any]) -> None:
    rounds, means = averaged(by_seed)
    _line(axes, rounds, means, arm, style)
    if len(by_seed) > 1:
        wanted = set(rounds)
        kept = [[s for r, s in zip(c.rounds, c.scores, strict=True) if r in wanted] for c in by_seed.values()]
        lows, highs = [min(row) for row in zip(*kept, strict=True)], [max(row) for row in zip(*kept, strict=True)]
        axes.fill_between(rounds, lows, highs, color=style["color"], alpha=0.1, linewidth=0)


def _over_bytes(axes: Axes, arm: str, by_seed: Mapping[int, Curve], style: dict[str, Any]) -> None:
    """Bytes by round hardly differ between seeds; where they do, the mean over seeds is drawn."""
    rounds, means = averaged(by_seed)
    by_round = [dict(zip(c.rounds, c.payload, strict=True)) for c in by_seed.values()]
    megabytes = [sum(known[r] for known in by_round) / len(by_round) / 1e6 for r in rounds]
    _line(axes, megabytes, means, arm, style)


def _line(axes: Axes, x: Sequence[float], means: Sequence[float], arm: str, style: dict[str, Any]) -> None:
    axes.plot(x, means, label=arm, linewidth=1.8, marker="o" if len(x) == 1 else "", **style)  # one point has no line
