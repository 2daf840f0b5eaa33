"""Splits a test set into per-client parts with the label distribution of each client's training data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sampling import IntArray, split_by_weights


def split_test_by_class(
    train_labels: IntArray, parts: Sequence[IntArray], test_labels: IntArray, rng: np.random.RandomState
) -> list[IntArray]:
    """Split the test samples of each class among clients in proportion to their training samples of it.

    If training and test set have the same class frequencies, a client's test part thus has the label distribution of
    its training data. See ``docs/methods/vhl.md``, section 11.

    Parameters
    ----------
    train_labels : int array (N,)
        Class of each training sample.
    parts : sequence of int array
        The clients' training indices.
    test_labels : int array (M,)
        Class of each test sample.
    rng : numpy.random.RandomState
        Shuffles the samples, and the order of clients within each class, so that rounding favors no client.

    Returns
    -------
    list of int64 array
        Sorted test indices per client. Disjoint; complete except for classes that no client trains on. A part may be
        empty if the test set is small.
    """
    pieces: list[list[IntArray]] = [[np.empty(0, np.int64)] for _ in parts]
    for label in np.unique(test_labels):
        held = np.array([np.count_nonzero(train_labels[p] == label) for p in parts])
        if not held.any():
            continue
        order = rng.permutation(len(parts))
        members = rng.permutation(np.flatnonzero(test_labels == label)).astype(np.int64)
        for client, piece in zip(order, split_by_weights(members, held[order]), strict=True):
            pieces[client].append(piece)
    return [np.sort(np.concatenate(p)) for p in pieces]
