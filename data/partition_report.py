"""Statistics of a partition: class counts, sizes and label skew per client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .sampling import IntArray


@dataclass(frozen=True, eq=False, slots=True)
class PartitionReport:
    """Class counts of a partition and statistics of its label skew.

    Attributes
    ----------
    counts : int64 array (K, C)
        Number of samples of each class at each client.
    """

    counts: IntArray

    @property
    def sizes(self) -> IntArray:
        """Samples per client, int64 (K,)."""
        sizes: IntArray = self.counts.sum(axis=1)
        return sizes

    @property
    def mean_classes(self) -> float:
        """Number of classes with at least one sample at a client, averaged over clients."""
        return float(np.count_nonzero(self.counts, axis=1).mean())

    @property
    def mean_distance(self) -> float:
        """Mean total-variation distance between a client's label distribution and the overall one.

        0 means equal distributions; 1 - 1/C means one class per client, if classes are equally large. Clients without
        samples are not counted.
        """
        counts = self.counts[self.sizes > 0]
        by_client = counts / counts.sum(axis=1, keepdims=True)
        overall = self.counts.sum(axis=0) / self.counts.sum()
        return float(0.5 * np.abs(by_client - overall).sum(axis=1).mean())

    def to_json(self) -> dict[str, object]:
        """Counts and statistics as plain lists and numbers."""
        return {
            "counts": self.counts.tolist(),
            "sizes": self.sizes.tolist(),
            "mean_classes": self.mean_classes,
            "mean_distance": self.mean_distance,
        }


def report(labels: npt.ArrayLike, parts: Sequence[IntArray], classes: int) -> PartitionReport:
    """Count the classes of a partition.

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
