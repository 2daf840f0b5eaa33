"""Algorithms that partition labeled samples among clients; pure functions of labels, clients and generator.

They use NumPy's legacy ``RandomState``, whose streams are frozen, as the published code does: partitions are the same
in any release. See ``docs/methods/vhl.md``, section 9.
"""

from __future__ import annotations

import numpy as np

from ..core.errors import ConfigError
from .sampling import (
    IntArray,
    assign_classes,
    by_class,
    dirichlet_draw,
    draw_without_replacement,
    redraw,
    split_by_weights,
)

#: Clients per group in :func:`lda_disjoint`.
GROUP = 10


def lda(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float, min_size: int = 1
) -> list[IntArray]:
    """Split each class by a Dirichlet draw; clients that already have N/K samples get no more ("hetero" partition).

    Parameters
    ----------
    labels : int array (N,)
        Class of each sample.
    clients : int
        Clients K; the n_c samples of a class are split at floor(cumsum(q) n_c) with q ~ Dir(alpha 1_K).
    rng : numpy.random.RandomState
        Shuffles the samples of a class, then draws q, class by class.
    alpha : float
        Concentration; smaller is more skewed.
    min_size : int
        The draw is repeated until the smallest client has this many samples.

    Returns
    -------
    list of int64 array
        K sorted arrays of indices, disjoint and complete.

    Raises
    ------
    ConfigError
        None of :data:`farshore.data.sampling.MAX_DRAWS` draws satisfied ``min_size``.
    """
    groups = by_class(labels)
    return redraw(
        lambda: dirichlet_draw(groups, clients, alpha, rng, shuffle=True),
        min_size,
        lambda best: f"set min_size={best} or less, a larger alpha than {alpha}, or fewer clients than {clients}",
    )


def lda_disjoint(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float, min_size: int = 1
) -> list[IntArray]:
    """Distribute the shuffled samples over groups of ten clients, and split each group's samples as :func:`lda` does.

    The last group has the remaining clients. A group is drawn again until its smallest client has half of the mean and
    ``min_size``. Parameters, result and errors otherwise as for :func:`lda`.
    """
    order = np.arange(len(labels), dtype=np.int64)
    rng.shuffle(order)
    share = int(GROUP / clients * len(labels)) if clients > GROUP else len(labels)
    parts: list[IntArray] = []
    for first in range(0, clients, GROUP):
        count = min(GROUP, clients - first)
        start = first // GROUP * share
        members = order[start:] if first + count == clients else order[start : start + share]
        parts += _group(labels, members, count, rng, alpha, min_size)
    return parts


def _group(
    labels: IntArray, members: IntArray, clients: int, rng: np.random.RandomState, alpha: float, min_size: int
) -> list[IntArray]:
    """Split the samples of one group; ``members`` is already shuffled."""
    groups = [members[labels[members] == c] for c in np.unique(labels[members])]
    return redraw(
        lambda: dirichlet_draw(groups, clients, alpha, rng, shuffle=False),
        max(min_size, int(0.5 * len(members) / clients)),
        lambda best: f"set a larger alpha than {alpha}, or kind=lda with min_size={best} or less",
    )


def classes_per_client(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, classes: int, min_size: int = 1
) -> list[IntArray]:
    """Give client i class i mod C and ``classes`` - 1 random others; split each class evenly among its clients.

    With fewer clients than classes, classes without a client are assigned first, so that no sample is left over.
    Parameters, result and errors otherwise as for :func:`lda`.

    Raises
    ------
    ConfigError
        The data have fewer than ``classes`` classes, or so many that some would have no client.
    """
    groups = by_class(labels)
    if classes > len(groups):
        raise ConfigError(
            f"a client cannot have {classes} of {len(groups)} classes", hint=f"set classes={len(groups)} or less"
        )
    if clients * classes < len(groups):
        min_classes = -(-len(groups) // clients)
        raise ConfigError(
            f"{clients} clients with {classes} classes each cannot cover all {len(groups)} classes",
            hint=f"set classes={min_classes} or more, or at least {-(-len(groups) // classes)} clients",
        )

    def draw() -> list[IntArray]:
        held = assign_classes(len(groups), clients, classes, rng)
        parts: list[list[IntArray]] = [[] for _ in range(clients)]
        for label, members in enumerate(groups):
            holders = np.flatnonzero(held[:, label])
            for client, piece in zip(holders, np.array_split(rng.permutation(members), len(holders)), strict=True):
                parts[client].append(piece)
        return [np.concatenate(p) for p in parts]

    return redraw(draw, min_size, lambda best: f"set min_size={best} or less, or fewer clients than {clients}")


def subset(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float, min_size: int = 1
) -> list[IntArray]:
    """Long-tail partition: client k has most of its samples in class k mod C.

    The K/C main clients of a class have weight alpha / (K/C) each, the others (1 - alpha / (K/C)) / (K - K/C);
    weights are normalized. Parameters, result and errors otherwise as for :func:`lda`.

    Raises
    ------
    ConfigError
        K is not a multiple of the number of classes, or ``alpha`` is too large or gives main clients less than others.
    """
    groups = by_class(labels)
    count = len(groups)
    if clients % count:
        below, above = clients // count * count, -(-clients // count) * count
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"kind=subset needs a multiple of {count} clients (one main class each), not {clients}",
            hint=f"set clients={near}",
        )
    mains = clients // count
    main = alpha / mains
    other = (1 - main) / (clients - mains) if clients > mains else 0.0
    if main > 1 or main < other:
        raise ConfigError(
            f"alpha={alpha} gives a main client {'more than all' if main > 1 else 'less'} of its class"
            f"{'' if main > 1 else ' than the others'}",
            hint="set an alpha below 1 and well above the share of one class, for example alpha=0.9",
        )

    def draw() -> list[IntArray]:
        parts: list[list[IntArray]] = [[] for _ in range(clients)]
        for label, members in enumerate(groups):
            weights = np.where(np.arange(clients) % count == label, main, other)
            for client, piece in enumerate(split_by_weights(rng.permutation(members), weights)):
                parts[client].append(piece)
        return [np.concatenate(p) for p in parts]

    return redraw(draw, min_size, lambda best: f"set min_size={best} or less, or a smaller alpha", draws=1)


def shards(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, shards: int, min_size: int = 1
) -> list[IntArray]:
    """Sort by label, cut into K times ``shards`` shards of equal size (±1), and give each client ``shards`` at random.

    Parameters, result and errors otherwise as for :func:`lda`.

    Raises
    ------
    ConfigError
        There are fewer samples than shards.
    """
    total = clients * shards
    if total > len(labels):
        raise ConfigError(
            f"{len(labels)} samples cannot be cut into {clients} x {shards} shards",
            hint=f"set shards={len(labels) // clients} or less",
        )
    pieces = np.array_split(np.argsort(labels, kind="stable").astype(np.int64), total)

    def draw() -> list[IntArray]:
        assignment = rng.permutation(total).reshape(clients, shards)
        return [np.concatenate([pieces[s] for s in row]) for row in assignment]

    return redraw(draw, min_size, lambda best: f"set min_size={best} or less, or fewer clients than {clients}")


def quantity(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, beta: float, min_size: int = 1
) -> list[IntArray]:
    """Quantity skew: client k has N q_k random samples, q ~ Dir(beta 1_K).

    Sizes are drawn again until all are at least ``min_size``; parameters, result and errors as for :func:`lda`.
    """
    order = rng.permutation(len(labels)).astype(np.int64)

    def draw() -> list[IntArray] | None:
        weights = rng.dirichlet(np.full(clients, beta))
        return split_by_weights(order, weights) if weights.sum() > 0 else None

    return redraw(
        draw, min_size, lambda best: f"set min_size={best} or less, a larger beta than {beta}, or fewer clients"
    )


def iid(labels: IntArray, clients: int, rng: np.random.RandomState) -> list[IntArray]:
    """Split a random permutation into parts of equal size (±1); K sorted arrays as for :func:`lda`."""
    return [np.sort(p) for p in np.array_split(rng.permutation(len(labels)).astype(np.int64), clients)]


def label_dirichlet(labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float) -> list[IntArray]:
    """Equal sizes (±1) and a label distribution q_k ~ Dir(alpha * prior) per client (arXiv 1909.06335).

    Samples are drawn without replacement. Exhausted classes are removed from q_k, so the last clients follow their q_k
    less closely; if q_k has no class left, the remaining samples are drawn in proportion to their numbers. Parameters
    and result as for :func:`lda`.
    """
    pools = [rng.permutation(members) for members in by_class(labels)]
    remaining = np.array([len(p) for p in pools])
    prior = remaining / len(labels)
    parts: list[IntArray] = []
    for size in (len(p) for p in np.array_split(labels, clients)):
        taken = draw_without_replacement(rng.dirichlet(alpha * prior), remaining, size, rng)
        remaining = remaining - taken
        # Samples are taken from the end of each pool.
        parts.append(np.concatenate([p[n : n + t] for p, n, t in zip(pools, remaining, taken, strict=True)]))
    return [np.sort(p) for p in parts]
