"""Configuration of how a data set is partitioned among clients; deterministic on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ConfigError
from . import partitioners
from .client_tests import split_test_by_class
from .sampling import IntArray

Kind = Literal["lda", "lda_disjoint", "classes_per_client", "subset", "shards", "quantity", "iid", "label_dirichlet"]


class Partition(BaseModel):
    """A partitioner and its parameters (:mod:`farshore.data.partitioners`; ``docs/methods/vhl.md``, section 9)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "lda"
    alpha: float = Field(
        0.1,
        ge=1e-6,
        le=1e6,
        description="lda, lda_disjoint, label_dirichlet: concentration, smaller is more skewed; subset: weight of the "
        "main clients of a class",
    )
    classes: int = Field(2, ge=1, description="classes per client (classes_per_client)")
    shards: int = Field(2, ge=1, description="shards per client (shards)")
    beta: float = Field(
        0.5, ge=1e-6, le=1e6, description="concentration of the sizes, smaller is more skewed (quantity)"
    )
    min_size: int = Field(10, ge=1, description="least number of samples of a client")
    seed: int | None = Field(None, ge=0, lt=1 << 32, description="seed of the draw; by default from the run's seed")

    def seeded(self, seed: int) -> Partition:
        """A copy with ``seed`` (below 2**32), unless the partition already has a seed."""
        return self if self.seed is not None else self.model_copy(update={"seed": seed})

    def split(self, labels: npt.ArrayLike, clients: int) -> list[IntArray]:
        """Partition the samples among clients.

        Parameters
        ----------
        labels : int array (N,)
            Class of each sample, 0 or more.
        clients : int
            Number of clients K.

        Returns
        -------
        list of int64 array
            K sorted arrays of indices, disjoint and complete, each with at least ``min_size`` samples (``iid`` and
            ``label_dirichlet``: equal sizes).

        Raises
        ------
        ConfigError
            Such a partition is impossible, or none was found in a bounded number of draws; the hint names the nearest
            feasible values.
        """
        classes = _checked(labels, clients, self.min_size)
        return self._draw(classes, clients, np.random.RandomState(self.seed or 0))

    def _draw(self, labels: IntArray, clients: int, rng: np.random.RandomState) -> list[IntArray]:
        min_size, alpha = self.min_size, self.alpha
        match self.kind:
            case "lda":
                return partitioners.lda(labels, clients, rng, alpha=alpha, min_size=min_size)
            case "lda_disjoint":
                return partitioners.lda_disjoint(labels, clients, rng, alpha=alpha, min_size=min_size)
            case "classes_per_client":
                return partitioners.classes_per_client(labels, clients, rng, classes=self.classes, min_size=min_size)
            case "subset":
                return partitioners.subset(labels, clients, rng, alpha=alpha, min_size=min_size)
            case "shards":
                return partitioners.shards(labels, clients, rng, shards=self.shards, min_size=min_size)
            case "quantity":
                return partitioners.quantity(labels, clients, rng, beta=self.beta, min_size=min_size)
            case "iid":
                return partitioners.iid(labels, clients, rng)
            case "label_dirichlet":
                return partitioners.label_dirichlet(labels, clients, rng, alpha=alpha)

    def split_test(
        self, labels: npt.ArrayLike, parts: Sequence[IntArray], test_labels: npt.ArrayLike
    ) -> list[IntArray]:
        """Test indices per client, see :func:`farshore.data.client_tests.split_test_by_class`; drawn with ``seed``."""
        train, test = _checked(labels, len(parts), 0), _checked(test_labels, len(parts), 0)
        return split_test_by_class(train, parts, test, np.random.RandomState(self.seed or 0))


def _checked(labels: npt.ArrayLike, clients: int, min_size: int) -> IntArray:
    found: np.ndarray[Any, Any] = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found) or found.min() < 0:
        raise ConfigError(
            f"labels must be a vector of integers from 0, not {found.dtype} of shape {found.shape}",
            hint="give the labels of an ImageSet",
        )
    if clients < 1:
        raise ConfigError(f"cannot partition a data set among {clients} clients", hint="set clients=1 or more")
    if clients * min_size > len(found):
        fewer = f"clients={len(found) // min_size} or less" if len(found) >= min_size else ""
        smaller = f"min_size={len(found) // clients} or less" if len(found) >= clients else ""
        raise ConfigError(
            f"{len(found)} samples are too few for {clients} clients with at least {min_size} each",
            hint="set " + " or ".join(c for c in (smaller, fewer) if c) if smaller or fewer else "use more data",
        )
    return found.astype(np.int64)
