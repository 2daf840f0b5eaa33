"""Per-client test parts: each client is tested on what it trains on (specification §6, "Per-client")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sampling import IntArray, cut


def like_train(
    train_labels: IntArray, parts: Sequence[IntArray], test_labels: IntArray, rng: np.random.RandomState
) -> list[IntArray]:
    """Split the test set so that each client tests on what it trains on.

    Of a class's test samples a client has the share that it has of the class's training samples; so where train and
    test set have the same class frequencies, its test part has its own label proportions (specification §6,
    "Per-client").

    Parameters
    ----------
    train_labels : int array (N,)
        Class of each training sample.
    parts : sequence of int array
        The clients' training indices.
    test_labels : int array (M,)
        Class of each test sample.
    rng : numpy.random.RandomState
        Shuffles the samples, and the order in which clients come at a class, so that none always loses by rounding.

    Returns
    -------
    list of int64 array
        Sorted test indices per client. Disjoint; complete but for classes that no client trains on. A client with
        small shares of a small test set may get none.
    """
    found: list[list[IntArray]] = [[np.empty(0, np.int64)] for _ in parts]
    for label in np.unique(test_labels):
        held = np.array([np.count_nonzero(train_labels[p] == label) for p in parts])
        if not held.any():
            continue
        order = rng.permutation(len(parts))
        members = rng.permutation(np.flatnonzero(test_labels == label)).astype(np.int64)
        for client, piece in zip(order, cut(members, held[order]), strict=True):
            found[client].append(piece)
    return [np.sort(np.concatenate(f)) for f in found]
