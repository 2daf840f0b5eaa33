"""The inverses that a rank keeps: computed by the layers' owners, broadcast if several ranks precondition a layer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from .communication import Grid
from .inverses import CholeskyInverse, EigenInverse, Inverse, InverseError, cholesky_inverse, eigen_inverse
from .layers import Layer
from .options import Options, value_at
from .running_average import RunningFactors

log = logging.getLogger(__name__)


class Inverses:
    """Inverses by layer name.

    Parameters
    ----------
    options : Options
    counts : Counter
        ``failed_inverses`` is incremented when an inverse fails.
    """

    def __init__(self, options: Options, counts: Counter[str]) -> None:
        self._options, self._counts = options, counts
        self._inverses: dict[str, Inverse] = {}

    def get(self, name: str) -> Inverse | None:
        """Return a layer's inverse; None if it has none, then its gradient is not preconditioned."""
        return self._inverses.get(name)

    def set_inverse(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Set a layer's inverse from the tensors that it consists of."""
        self._inverses[name] = (EigenInverse if self._options.inverse == "eigen" else CholeskyInverse)(*tensors)

    def names(self) -> set[str]:
        """Return the names of the layers that have an inverse here."""
        return set(self._inverses)

    def keep_only(self, names: Set[str]) -> None:
        """Delete the inverses of all other layers."""
        self._inverses = {name: inverse for name, inverse in self._inverses.items() if name in names}

    def nbytes(self) -> int:
        """Return the bytes of all inverses."""
        return sum(tensor.nbytes for inverse in self._inverses.values() for tensor in inverse.tensors())

    def compute(self, layers: Iterable[Layer], factors: RunningFactors, step: int) -> None:
        """Invert the factors of ``layers``; a layer without factors is skipped, and a failed inverse is removed."""
        damping = value_at(self._options.damping, step)
        for layer in layers:
            pair = factors.get(layer.name)
            if pair is None:
                continue
            a, g = (factor.to(self._options.inv_dtype) for factor in pair)
            try:
                if self._options.inverse == "eigen":
                    self._inverses[layer.name] = eigen_inverse(a, g, damping)
                else:
                    self._inverses[layer.name] = cholesky_inverse(a, g, damping, self._options.pi_damping)
            except InverseError as error:
                log.warning(
                    "%s: the gradient is not preconditioned until the next update of inverses: %s", layer.name, error
                )
                self._counts["failed_inverses"] += 1
                self._inverses.pop(layer.name, None)

    def broadcast(self, layers: Iterable[Layer], owners: Mapping[str, int], grid: Grid) -> None:
        """Broadcast each layer's inverse from its owner to the owner's column (KAISA's gradient workers)."""
        column = grid.column
        if column is None:
            return
        works: list[Any] = []
        for layer in layers:
            owner = owners[layer.name]
            if not grid.preconditions(owner):
                continue
            is_owner = owner == grid.all.rank
            if not is_owner or layer.name not in self._inverses:
                # A buffer to receive into; on the owner, the identity in place of an inverse that failed.
                self._inverses[layer.name] = self._blank(layer, identity=is_owner)
            for tensor in self._inverses[layer.name].tensors():
                works.append(column.broadcast(tensor, grid.rank_in_column(owner), "inverses"))
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
