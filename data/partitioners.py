"""Ways to deal labeled samples out to clients, each a pure function of labels, clients and generator.

They take NumPy's legacy ``RandomState``, whose streams never change: the published partitions were drawn with it, and a
draw of today is the draw of any later release (specification of virtual homogeneous learning §3.5).
"""

from __future__ import annotations

import numpy as np

from ..core.errors import ConfigError
from .sampling import IntArray, by_class, cut, deal_classes, dirichlet_draw, draw_without_replacement, redraw

#: Clients that share a group in :func:`lda_disjoint`.
GROUP = 10


def lda(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float, min_size: int = 1
) -> list[IntArray]:
    """Split every class by its own Dirichlet draw, and give no more to clients that have their fair share already.

    Parameters
    ----------
    labels : int array (N,)
        Class of each sample.
    clients : int
        Clients K; the cut points of a class are floor(cumsum(q) n_c) with q ~ Dir(alpha 1_K).
    rng : numpy.random.RandomState
        Used class by class, to shuffle and then to draw q.
    alpha : float
        Smaller is more uneven.
    min_size : int
        The whole draw is repeated until the smallest client has so many samples.

    Returns
    -------
    list of int64 array
        K sorted arrays of indices; together they hold every index once.

    Raises
    ------
    ConfigError
        No draw of :data:`farshore.data.sampling.DRAWS` satisfied ``min_size``.
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
    """Deal the shuffled samples to groups of ten clients, and split each group's by :func:`lda`'s rule.

    The last group has the clients that remain. A group is drawn again until its smallest client has half the mean and
    ``min_size``. Parameters, result and errors otherwise as for :func:`lda`.
    """
    order = np.arange(len(labels), dtype=np.int64)
    rng.shuffle(order)
    share = int(GROUP / clients * len(labels)) if clients > GROUP else len(labels)
    parts: list[IntArray] = []
    for first in range(0, clients, GROUP):
        count = min(GROUP, clients - first)
        start = first // GROUP * share
        mine = order[start:] if first + count == clients else order[start : start + share]
        parts += _group(labels, mine, count, rng, alpha, min_size)
    return parts


def _group(
    labels: IntArray, mine: IntArray, clients: int, rng: np.random.RandomState, alpha: float, min_size: int
) -> list[IntArray]:
    """Split the samples ``mine`` of one group; they are shuffled already."""
    groups = [mine[labels[mine] == c] for c in np.unique(labels[mine])]
    return redraw(
        lambda: dirichlet_draw(groups, clients, alpha, rng, shuffle=False),
        max(min_size, int(0.5 * len(mine) / clients)),
        lambda best: f"set a larger alpha than {alpha}, or kind=lda with min_size={best} or less",
    )


def classes_per_client(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, classes: int, min_size: int = 1
) -> list[IntArray]:
    """Client i holds class i mod C and ``classes`` - 1 random others; a class is split evenly among its holders.

    With fewer clients than classes, the others are first taken from the classes that nobody holds, so that no sample
    is left over. Parameters, result and errors otherwise as for :func:`lda`.

    Raises
    ------
    ConfigError
        There are fewer than ``classes`` classes, or so many that some would have no holder.
    """
    groups = by_class(labels)
    if classes > len(groups):
        raise ConfigError(
            f"a client cannot hold {classes} classes of {len(groups)}", hint=f"set classes={len(groups)} or less"
        )
    if clients * classes < len(groups):
        least = -(-len(groups) // clients)
        raise ConfigError(
            f"{clients} clients with {classes} classes each leave some of the {len(groups)} classes to nobody",
            hint=f"set classes={least} or more, or at least {-(-len(groups) // classes)} clients",
        )

    def draw() -> list[IntArray]:
        held = deal_classes(len(groups), clients, classes, rng)
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
    """Long tail: client k has much of class k mod C and a little of every other.

    The K/C main clients of a class have weight alpha / (K/C) each, the others (1 - alpha / (K/C)) / (K - K/C);
    weights are renormalized. Parameters, result and errors otherwise as for :func:`lda`.

    Raises
    ------
    ConfigError
        K is no multiple of the number of classes, or ``alpha`` is no share or favors the others.
    """
    groups = by_class(labels)
    count = len(groups)
    if clients % count:
        below, above = clients // count * count, -(-clients // count) * count
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"kind=subset needs a multiple of {count} clients, one main class each, and {clients} is none",
            hint=f"set clients={near}",
        )
    mains = clients // count
    main = alpha / mains
    other = (1 - main) / (clients - mains) if clients > mains else 0.0
    if main > 1 or main < other:
        raise ConfigError(
            f"with alpha={alpha} the main clients of a class would have {'all and more' if main > 1 else 'less'} of it "
            f"than the others",
            hint="set an alpha below 1 and well above the share of one class, for example alpha=0.9",
        )

    def draw() -> list[IntArray]:
        parts: list[list[IntArray]] = [[] for _ in range(clients)]
        for label, members in enumerate(groups):
            weights = np.where(np.arange(clients) % count == label, main, other)
            for client, piece in enumerate(cut(rng.permutation(members), weights)):
                parts[client].append(piece)
        return [np.concatenate(p) for p in parts]

    return redraw(draw, min_size, lambda best: f"set min_size={best} or less, or a smaller alpha", draws=1)


def shards(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, shards: int, min_size: int = 1
) -> list[IntArray]:
    """Sort by label, cut into K times ``shards`` equal shards (sizes differ by one at most), deal each client its own.

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
        hands = rng.permutation(total).reshape(clients, shards)
        return [np.concatenate([pieces[s] for s in hand]) for hand in hands]

    return redraw(draw, min_size, lambda best: f"set min_size={best} or less, or fewer clients than {clients}")


def quantity(
    labels: IntArray, clients: int, rng: np.random.RandomState, *, beta: float, min_size: int = 1
) -> list[IntArray]:
    """Random labels, uneven sizes: client k has N q_k samples, q ~ Dir(beta 1_K).

    The sizes are drawn again until all are at least ``min_size``; parameters, result and errors as for :func:`lda`.
    """
    order = rng.permutation(len(labels)).astype(np.int64)

    def draw() -> list[IntArray] | None:
        weights = rng.dirichlet(np.full(clients, beta))
        return cut(order, weights) if weights.sum() > 0 else None

    return redraw(
        draw, min_size, lambda best: f"set min_size={best} or less, a larger beta than {beta}, or fewer clients"
    )


def iid(labels: IntArray, clients: int, rng: np.random.RandomState) -> list[IntArray]:
    """A random permutation in equal parts (sizes differ by one at most); K sorted arrays as for :func:`lda`."""
    return [np.sort(p) for p in np.array_split(rng.permutation(len(labels)).astype(np.int64), clients)]


def label_dirichlet(labels: IntArray, clients: int, rng: np.random.RandomState, *, alpha: float) -> list[IntArray]:
    """Equal sizes (they differ by one at most), labels by a draw per client: q_k ~ Dir(alpha * prior).

    Samples are drawn without replacement. Classes that run out are left out of q_k, so the last clients follow their
    q_k less and less; where all of q_k has run out, what is left is drawn evenly. Parameters and result as for
    :func:`lda`.
    """
    pools = [rng.permutation(members) for members in by_class(labels)]
    left = np.array([len(p) for p in pools])
    prior = left / len(labels)
    parts: list[IntArray] = []
    for size in (len(p) for p in np.array_split(labels, clients)):
        taken = draw_without_replacement(rng.dirichlet(alpha * prior), left, size, rng)
        left = left - taken
        # A pool is used up from its end.
        parts.append(np.concatenate([p[n : n + t] for p, n, t in zip(pools, left, taken, strict=True)]))
    return [np.sort(p) for p in parts]
