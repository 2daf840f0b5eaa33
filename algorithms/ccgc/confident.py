"""Confident nodes, and the random pairs of them that are positives in an epoch (section 3 of the page)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.seeds import Seed
from ...data.graph_set import Ints
from .settings import CCGCSettings


def confident_nodes(distances: NDArray[np.floating], tau: float) -> NDArray[np.bool_]:
    """Return which nodes are closer to their center than the threshold, the distance of rank ⌊τN⌋.

    Nodes at the threshold are not confident; with τ = 1 the threshold is the largest distance.
    """
    threshold = np.sort(distances)[min(int(tau * len(distances)), len(distances) - 1)]
    confident: NDArray[np.bool_] = distances < threshold
    return confident


def confident_sets(labels: Ints, confident: NDArray[np.bool_], *, skip_first: bool = False) -> list[Ints]:
    """Return the confident nodes of each cluster that has any, in the order of the clusters.

    Parameters
    ----------
    labels : int64 array, shape [N]
    confident : bool array, shape [N]
    skip_first : bool
        Leave out the first of them, as the published code does by accident.
    """
    present = np.unique(labels[confident])
    sets = [np.flatnonzero(confident & (labels == label)) for label in present]
    return sets[1:] if skip_first else sets


@dataclass(frozen=True)
class Pairs:
    """The random choices of one epoch; the same on all ranks.

    Attributes
    ----------
    first, second : int64 array, shape [M]
        Positive pairs: a node in view 1 and a node of the same cluster in view 2.
    members : sequence of (int64 array, int64 array)
        For each cluster, the nodes whose sum in view 1 and in view 2 stands for it among the negatives.
    """

    first: Ints
    second: Ints
    members: Sequence[tuple[Ints, Ints]]


def draw_pairs(sets: Sequence[Ints], settings: CCGCSettings, seed: Seed) -> Pairs:
    """Draw the pairs of an epoch: two independent subsets of each set, paired by position.

    With ``positives=self`` both nodes of a pair are the same. With ``negatives=random_nodes`` one random node stands
    for its cluster instead of all.
    """
    random = seed.numpy()
    sizes = [int(settings.subsample * len(each)) for each in sets]
    first = [random.choice(each, size, replace=False) for each, size in zip(sets, sizes, strict=True)]
    if settings.positives == "self":
        second = first
    else:
        second = [random.choice(each, size, replace=False) for each, size in zip(sets, sizes, strict=True)]
    if settings.negatives == "random_nodes":
        members = [(random.choice(each, 1), random.choice(each, 1)) for each in sets]
    else:
        members = [(each, each) for each in sets]
    none = np.zeros(0, np.int64)
    return Pairs(np.concatenate([none, *first]), np.concatenate([none, *second]), members)
