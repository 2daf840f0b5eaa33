"""Running averages of Kronecker factors, and their rotation to the next rank.

See ``docs/methods/dp_kfac.md``, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal

import torch
from torch import Tensor

from .collectives import Collectives
from .communication import Factors
from .layers import Layer


class RunningFactors:
    """The running averages of A and G, by layer name.

    Parameters
    ----------
    init : {"first", "identity"}
        Initial value: the first batch's factors, or the identity.
    dtype : dtype, optional
        Default: that of the factors.
    """

    def __init__(self, init: Literal["first", "identity"] = "first", dtype: torch.dtype | None = None) -> None:
        self._init, self._dtype = init, dtype
        self._pairs: Factors = {}

    def get(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return A (a, a) and G (g, g) of a layer; None before the first update."""
        return self._pairs.get(name)

    def names(self) -> set[str]:
        """Return the names of the layers that have factors here."""
        return set(self._pairs)

    def update(self, new: Mapping[str, tuple[Tensor, Tensor]], old_weight: float) -> None:
        """Set each average to w · old + (1 - w) · new, where w is ``old_weight``; other layers keep theirs."""
        for name, pair in new.items():
            self._pairs[name] = self._blend(self._pairs.get(name), pair, old_weight)

    def set_factors(self, name: str, a: Tensor, g: Tensor) -> None:
        """Set a layer's factors."""
        self._pairs[name] = (a, g)

    def keep_only(self, names: Set[str]) -> None:
        """Delete the factors of all other layers."""
        self._pairs = {name: pair for name, pair in self._pairs.items() if name in names}

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of all A and of all G."""
        return sum(a.nbytes for a, _ in self._pairs.values()), sum(g.nbytes for _, g in self._pairs.values())

    def dtype_of(self, layer: Layer) -> torch.dtype:
        """Return the dtype of a layer's factors: ``dtype`` if set, else float64 for a float64 layer, else float32."""
        own = layer.module.weight.dtype
        return self._dtype or (own if own == torch.float64 else torch.float32)

    def pack(self, layers: Sequence[Layer], like: Tensor, empty: bool = False) -> Tensor:
        """Return the factors of layers as one vector, with zeros where there are none; ``empty``: only zeros."""
        dtype = self.dtype_of(layers[0]) if layers else torch.float32
        flat = like.new_zeros(sum(layer.factor_elements for layer in layers), dtype=dtype)
        if empty:
            return flat
        first = 0
        for layer in layers:
            if (pair := self._pairs.get(layer.name)) is not None:
                flat[first : first + layer.factor_elements] = torch.cat([factor.reshape(-1) for factor in pair])
            first += layer.factor_elements
        return flat

    def unpack(self, layers: Sequence[Layer], flat: Tensor) -> None:
        """Set the factors of layers from a vector of :meth:`pack`; a layer whose part is zero gets none."""
        first = 0
        for layer in layers:
            part = flat[first : first + layer.factor_elements]
            first += layer.factor_elements
            a, g = part[: layer.a**2].view(layer.a, layer.a), part[layer.a**2 :].view(layer.g, layer.g)
            if part.any():
                self._pairs[layer.name] = (a.clone(), g.clone())

    def _blend(
        self, old: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], old_weight: float
    ) -> tuple[Tensor, Tensor]:
        if self._dtype is not None:
            new = (new[0].to(self._dtype), new[1].to(self._dtype))
        if old is None and self._init == "first":
            return new
        if old is None:
            old = (_identity_like(new[0]), _identity_like(new[1]))
        w = old_weight
        return old[0].mul_(w).add_(new[0], alpha=1 - w), old[1].mul_(w).add_(new[1], alpha=1 - w)


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def rotate_factors(
    factors: RunningFactors, layers: Sequence[Layer], owners: Mapping[str, int], collectives: Collectives, like: Tensor
) -> tuple[list[Layer], Tensor]:
    """Send this rank's factors to the next rank, and receive those of the previous one.

    Returns
    -------
    layers : list of Layer
        The previous rank's layers.
    factors : Tensor
        Their packed factors, see :meth:`RunningFactors.pack`.
    """
    next_rank, previous_rank = (collectives.rank + 1) % collectives.ranks, (collectives.rank - 1) % collectives.ranks
    outgoing, incoming = (
        [layer for layer in layers if owners[layer.name] == rank] for rank in (collectives.rank, previous_rank)
    )
    sent, received = factors.pack(outgoing, like), factors.pack(incoming, like, empty=True)
    works = []
    if outgoing:
        works.append(collectives.point_to_point(sent, collectives.rank, next_rank, "rotated"))
    if incoming:
        works.append(collectives.point_to_point(received, previous_rank, collectives.rank, "rotated"))
    for work in works:
        work.wait()
    return incoming, received
