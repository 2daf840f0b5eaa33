"""How uneven a partition is, in the measures that papers give (specification §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .sampling import IntArray


@dataclass(frozen=True, eq=False, slots=True)
class PartitionReport:
    """Counts of a partition and what follows from them.

    Attributes
    ----------
    counts : int64 array (K, C)
        Samples of each class at each client.
    """

    counts: IntArray

    @property
    def sizes(self) -> IntArray:
        """Samples per client, int64 (K,)."""
        sizes: IntArray = self.counts.sum(axis=1)
        return sizes

    @property
    def mean_classes(self) -> float:
        """Classes that a client holds at least one sample of, averaged over clients."""
        return float(np.count_nonzero(self.counts, axis=1).mean())

    @property
    def mean_distance(self) -> float:
        """Total-variation distance of a client's label distribution to that of all clients together, averaged.

        0 is even; 1 - 1/C is one class per client, where classes are equally large. Clients without samples have no
        distribution and do not count.
        """
        filled = self.counts[self.sizes > 0]
        own = filled / filled.sum(axis=1, keepdims=True)
        everyone = self.counts.sum(axis=0) / self.counts.sum()
        return float(0.5 * np.abs(own - everyone).sum(axis=1).mean())

    def to_json(self) -> dict[str, object]:
        """Counts and measures as plain lists and numbers."""
        return {
            "counts": self.counts.tolist(),
            "sizes": self.sizes.tolist(),
            "mean_classes": self.mean_classes,
            "mean_distance": self.mean_distance,
        }


def report(labels: npt.ArrayLike, parts: Sequence[IntArray], classes: int) -> PartitionReport:
    """Count a partition.

    Parameters
    ----------
    labels : int array (N,)
        Class of each sample, below ``classes``.
    parts : sequence of int array
        Indices per client; at least one index in all.
    classes : int
        Number of classes C.
    """
    found = np.asarray(labels)
    return PartitionReport(np.stack([np.bincount(found[p], minlength=classes) for p in parts]).astype(np.int64))
