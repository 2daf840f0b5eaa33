"""A generated graph that needs no files: a degree-corrected planted partition whose nodes have binary words."""

from __future__ import annotations

import numpy as np

from ..core.seeds import Seed
from .graph_set import Graph, undirected

#: Words that are frequent in a class, and probabilities of a word of the own class and of another.
_OWN_WORDS, _OWN, _OTHER = 12, 0.25, 0.05


def make_graph(
    seed: Seed, *, nodes: int = 600, classes: int = 4, degree: float = 8.0, mixing: float = 0.3, words: int = 64
) -> Graph:
    """Draw a graph.

    Parameters
    ----------
    seed : Seed
    nodes, classes : int
        Classes have the same size, up to one node.
    degree : float
        Mean degree, about; nodes draw their share of it from a log-normal distribution.
    mixing : float
        Share of the edges whose ends are drawn from all classes instead of one.
    words : int
        Number of attributes.
    """
    random = seed.child("graph").numpy()
    labels = np.sort(np.arange(nodes) % classes).astype(np.int64)
    weights = random.lognormal(0.0, 0.5, nodes)
    count = round(nodes * degree / 2)
    starts = random.choice(nodes, count, p=weights / weights.sum())
    ends = np.empty(count, np.int64)
    anywhere = random.random(count) < mixing
    ends[anywhere] = random.choice(nodes, int(anywhere.sum()), p=weights / weights.sum())
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        drawn = np.flatnonzero(~anywhere & (labels[starts] == label))
        ends[drawn] = random.choice(members, len(drawn), p=weights[members] / weights[members].sum())
    edges, _ = undirected(np.stack([starts, ends]))
    own = np.arange(words)[None, :] // _OWN_WORDS == np.arange(classes)[:, None]
    rates = np.where(own, _OWN, _OTHER)
    features = (random.random((nodes, words)) < rates[labels]).astype(np.float32)
    return Graph("synthetic", edges, features, labels, note="generated: a planted partition with binary attributes")
