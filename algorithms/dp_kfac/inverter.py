"""The inverses of a rank's layers: made by owners, and shared where more ranks than one precondition."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from .communication import Grid
from .inverses import CholeskyInverse, EigenInverse, Inverse, InverseError, cholesky_inverse, eigen_inverse
from .layers import Layer
from .options import Options, at
from .running_average import RunningFactors

log = logging.getLogger(__name__)


class Inverses:
    """Inverses by layer name.

    Parameters
    ----------
    options : Options
    counts : Counter
        Told of inverses that failed.
    """

    def __init__(self, options: Options, counts: Counter[str]) -> None:
        self._options, self._counts = options, counts
        self._made: dict[str, Inverse] = {}

    def get(self, name: str) -> Inverse | None:
        """A layer's inverse; None if there is none (yet): it keeps its plain gradient."""
        return self._made.get(name)

    def put(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Set a layer's inverse from the tensors that it is made of."""
        self._made[name] = (EigenInverse if self._options.inverse == "eigen" else CholeskyInverse)(*tensors)

    def names(self) -> set[str]:
        """Layers that have one here."""
        return set(self._made)

    def keep(self, names: Set[str]) -> None:
        """Forget all others."""
        self._made = {name: inverse for name, inverse in self._made.items() if name in names}

    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(tensor.nbytes for inverse in self._made.values() for tensor in inverse.tensors())

    def make(self, layers: Iterable[Layer], factors: RunningFactors, step: int) -> None:
        """Invert anew what has factors; what fails goes without."""
        damping = at(self._options.damping, step)
        for layer in layers:
            pair = factors.get(layer.name)
            if pair is None:
                continue
            a, g = (factor.to(self._options.inv_dtype) for factor in pair)
            try:
                if self._options.inverse == "eigen":
                    self._made[layer.name] = eigen_inverse(a, g, damping)
                else:
                    self._made[layer.name] = cholesky_inverse(a, g, damping, self._options.pi_damping)
            except InverseError as error:
                log.warning("%s keeps its plain gradient for now: %s", layer.name, error)
                self._counts["inverses that failed"] += 1
                self._made.pop(layer.name, None)

    def share(self, layers: Iterable[Layer], owners: Mapping[str, int], grid: Grid) -> None:
        """From each layer's owner to the others of its column, KAISA's gradient workers."""
        column = grid.column
        if column is None:
            return
        works: list[Any] = []
        for layer in layers:
            owner = owners[layer.name]
            if not grid.works_on(owner):
                continue
            mine = owner == grid.all.rank
            if not mine or layer.name not in self._made:
                # Room to receive into; or, in place of an inverse that failed, one that changes nothing.
                self._made[layer.name] = self._blank(layer, identity=mine)
            for tensor in self._made[layer.name].tensors():
                works.append(column.broadcast(tensor, grid.place_in_column(owner), "inverses"))
        for work in works:
            work.wait()

    def _blank(self, layer: Layer, identity: bool) -> Inverse:
        like = layer.module.weight.detach().to(self._options.inv_dtype)
        a, g = like.new_zeros(layer.a, layer.a), like.new_zeros(layer.g, layer.g)
        if identity:
            nn.init.eye_(a)
            nn.init.eye_(g)
        if self._options.inverse == "cholesky":
            return CholeskyInverse(a, g)
        return EigenInverse(a, g, like.new_ones(layer.g, layer.a))
