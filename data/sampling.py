"""Random draws used by the partitioners: Dirichlet splits, class assignment, and repeated draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError

IntArray = npt.NDArray[np.int64]

#: Draws after which a minimum size is reported as infeasible; takes seconds for 50,000 samples and 100 clients.
MAX_DRAWS = 1000


def by_class(labels: IntArray) -> list[IntArray]:
    """Ascending indices of the samples of every class that occurs, in the order of the classes."""
    return [np.flatnonzero(labels == c).astype(np.int64) for c in np.unique(labels)]


def dirichlet_draw(
    groups: Sequence[IntArray], clients: int, alpha: float, rng: np.random.RandomState, *, shuffle: bool
) -> list[IntArray] | None:
    """One draw of the LDA partition; None if no client can take samples of some class."""
    total = sum(len(g) for g in groups)
    sizes = np.zeros(clients, np.int64)
    parts: list[list[IntArray]] = [[] for _ in range(clients)]
    for group in groups:
        members = group.copy()
        if shuffle:
            rng.shuffle(members)
        weights = rng.dirichlet(np.full(clients, alpha)) * (sizes < total / clients)
        if not weights.sum() > 0:  # also true for NaN, which a tiny alpha gives if every gamma draw is 0
            return None
        for client, piece in enumerate(split_by_weights(members, weights)):
            parts[client].append(piece)
            sizes[client] += len(piece)
    return [np.concatenate(p) for p in parts]


def split_by_weights(members: IntArray, weights: npt.NDArray[np.generic]) -> list[IntArray]:
    """Split n members at floor(cumsum(weights / sum) n); one piece per weight."""
    fractions = weights / weights.sum()
    return np.split(members, (np.cumsum(fractions) * len(members)).astype(np.int64)[:-1])


def assign_classes(count: int, clients: int, classes: int, rng: np.random.RandomState) -> npt.NDArray[np.bool_]:
    """Assign ``classes`` of ``count`` classes to each client; returns a mask (clients, count)."""
    assigned = np.zeros((clients, count), np.bool_)
    assigned[np.arange(clients), np.arange(clients) % count] = True
    if clients < count:
        unassigned = rng.permutation(np.arange(clients, count))
        assigned[np.arange(len(unassigned)) % clients, unassigned] = True
    for row in assigned:
        others = np.flatnonzero(~row)
        row[rng.choice(others, classes - np.count_nonzero(row), replace=False)] = True
    return assigned


def draw_without_replacement(
    weights: npt.NDArray[np.float64], available: IntArray, size: int, rng: np.random.RandomState
) -> IntArray:
    """Draw class counts that sum to ``size``, with class probabilities ``weights`` and at most ``available`` each."""
    taken = np.zeros(len(available), np.int64)
    while (missing := size - int(taken.sum())) > 0:
        open_weights = weights * (taken < available)
        if not open_weights.sum() > 0:
            open_weights = (available - taken).astype(np.float64)
        taken = np.minimum(taken + rng.multinomial(missing, open_weights / open_weights.sum()), available)
    return taken


def redraw(
    draw: Callable[[], list[IntArray] | None], min_size: int, hint: Callable[[int], str], draws: int = MAX_DRAWS
) -> list[IntArray]:
    """Repeat a draw until every part has at least ``min_size`` samples; returns the parts sorted.

    Raises
    ------
    ConfigError
        None of ``draws`` draws succeeded; ``hint`` gets the size of the smallest part in the best draw.
    """
    best = 0
    for _ in range(draws):
        parts = draw()
        smallest = 0 if parts is None else min(len(p) for p in parts)
        if parts is not None and smallest >= min_size:
            return [np.sort(p) for p in parts]
        best = max(best, smallest)
    attempts = f"in {draws} draws the smallest client never had" if draws > 1 else "the smallest client would not have"
    raise ConfigError(f"{attempts} {min_size} samples, but at most {best}", hint=hint(best))
