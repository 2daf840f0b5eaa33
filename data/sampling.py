"""The draws that partitioners are made of: cutting a class, dealing classes, and trying again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError

IntArray = npt.NDArray[np.int64]

#: Draws made before a wish for a smallest client is called impossible; seconds for 50,000 samples and 100 clients.
DRAWS = 1000


def by_class(labels: IntArray) -> list[IntArray]:
    """The ascending indices of every class that occurs, in the order of the classes."""
    return [np.flatnonzero(labels == c).astype(np.int64) for c in np.unique(labels)]


def dirichlet_draw(
    groups: Sequence[IntArray], clients: int, alpha: float, rng: np.random.RandomState, *, shuffle: bool
) -> list[IntArray] | None:
    """One draw of the LDA rule; None if a class found no client that it could go to."""
    total = sum(len(g) for g in groups)
    sizes = np.zeros(clients, np.int64)
    parts: list[list[IntArray]] = [[] for _ in range(clients)]
    for group in groups:
        members = group.copy()
        if shuffle:
            rng.shuffle(members)
        weights = rng.dirichlet(np.full(clients, alpha)) * (sizes < total / clients)
        if not weights.sum() > 0:  # or NaN, where alpha is so small that every gamma draw is 0
            return None
        for client, piece in enumerate(cut(members, weights)):
            parts[client].append(piece)
            sizes[client] += len(piece)
    return [np.concatenate(p) for p in parts]


def cut(members: IntArray, weights: npt.NDArray[np.generic]) -> list[IntArray]:
    """Cut at floor(cumsum(weights / sum) n): one piece per weight."""
    shares = weights / weights.sum()
    return np.split(members, (np.cumsum(shares) * len(members)).astype(np.int64)[:-1])


def deal_classes(count: int, clients: int, classes: int, rng: np.random.RandomState) -> npt.NDArray[np.bool_]:
    """Which client (row) holds which class (column)."""
    held = np.zeros((clients, count), np.bool_)
    held[np.arange(clients), np.arange(clients) % count] = True
    if clients < count:
        spare = rng.permutation(np.arange(clients, count))
        held[np.arange(len(spare)) % clients, spare] = True
    for row in held:
        others = np.flatnonzero(~row)
        row[rng.choice(others, classes - np.count_nonzero(row), replace=False)] = True
    return held


def draw_without_replacement(
    weights: npt.NDArray[np.float64], left: IntArray, size: int, rng: np.random.RandomState
) -> IntArray:
    """How many of each class make up ``size`` samples, none more than ``left`` of it."""
    taken = np.zeros(len(left), np.int64)
    while (missing := size - int(taken.sum())) > 0:
        open_ = weights * (taken < left)
        if not open_.sum() > 0:
            open_ = (left - taken).astype(np.float64)
        taken = np.minimum(taken + rng.multinomial(missing, open_ / open_.sum()), left)
    return taken


def redraw(
    draw: Callable[[], list[IntArray] | None], least: int, hint: Callable[[int], str], draws: int = DRAWS
) -> list[IntArray]:
    """The first draw whose smallest part has ``least`` samples, every part sorted."""
    best = 0
    for _ in range(draws):
        parts = draw()
        smallest = 0 if parts is None else min(len(p) for p in parts)
        if parts is not None and smallest >= least:
            return [np.sort(p) for p in parts]
        best = max(best, smallest)
    often = f"in {draws} draws the smallest client never had" if draws > 1 else "the smallest client would not have"
    raise ConfigError(f"{often} {least} samples, but at most {best}", hint=hint(best))
