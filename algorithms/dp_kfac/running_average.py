"""Running averages of Kronecker factors, of the layers that a rank keeps them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal

import torch
from torch import Tensor

from .collectives import Collectives
from .communication import Factors
from .layers import Layer


class RunningFactors:
    """A and G by layer name.

    Parameters
    ----------
    init : "first" or "identity"
        The first estimate itself, or what the identity becomes with it.
    dtype : dtype, optional
        Default: the estimates' own.
    """

    def __init__(self, init: Literal["first", "identity"] = "first", dtype: torch.dtype | None = None) -> None:
        self._init, self._dtype = init, dtype
        self._pairs: Factors = {}

    def get(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A (a, a) and G (g, g) of a layer; None before the first estimate."""
        return self._pairs.get(name)

    def names(self) -> set[str]:
        """Layers that have factors here."""
        return set(self._pairs)

    def update(self, new: Mapping[str, tuple[Tensor, Tensor]], old_share: float) -> None:
        """old ← share · old + (1 - share) · new; layers without a new estimate stay as they are."""
        for name, pair in new.items():
            self._pairs[name] = self._mixed(self._pairs.get(name), pair, old_share)

    def put(self, name: str, a: Tensor, g: Tensor) -> None:
        """Set a layer's factors."""
        self._pairs[name] = (a, g)

    def keep(self, names: Set[str]) -> None:
        """Forget all others."""
        self._pairs = {name: pair for name, pair in self._pairs.items() if name in names}

    def sizes(self) -> tuple[int, int]:
        """Bytes of all A and of all G."""
        return sum(a.nbytes for a, _ in self._pairs.values()), sum(g.nbytes for _, g in self._pairs.values())

    def dtype_of(self, layer: Layer) -> torch.dtype:
        """Of a layer's factors: as set, else float32, or float64 if the layer is."""
        own = layer.module.weight.dtype
        return self._dtype or (own if own == torch.float64 else torch.float32)

    def packed(self, layers: Sequence[Layer], like: Tensor, empty: bool = False) -> Tensor:
        """Factors of some layers as one vector, zeros for those that have none; or room for it."""
        dtype = self.dtype_of(layers[0]) if layers else torch.float32
        flat = like.new_zeros(sum(layer.factors for layer in layers), dtype=dtype)
        if empty:
            return flat
        first = 0
        for layer in layers:
            if (pair := self._pairs.get(layer.name)) is not None:
                flat[first : first + layer.factors] = torch.cat([factor.reshape(-1) for factor in pair])
            first += layer.factors
        return flat

    def unpack(self, layers: Sequence[Layer], flat: Tensor) -> None:
        """Take what :meth:`packed` made; a layer of zeros has no factors."""
        first = 0
        for layer in layers:
            part = flat[first : first + layer.factors]
            first += layer.factors
            a, g = part[: layer.a**2].view(layer.a, layer.a), part[layer.a**2 :].view(layer.g, layer.g)
            if part.any():
                self._pairs[layer.name] = (a.clone(), g.clone())

    def _mixed(
        self, old: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], share: float
    ) -> tuple[Tensor, Tensor]:
        if self._dtype is not None:
            new = (new[0].to(self._dtype), new[1].to(self._dtype))
        if old is None and self._init == "first":
            return new
        if old is None:
            old = (_identity_like(new[0]), _identity_like(new[1]))
        return old[0].mul_(share).add_(new[0], alpha=1 - share), old[1].mul_(share).add_(new[1], alpha=1 - share)


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def pass_on(
    factors: RunningFactors, layers: Sequence[Layer], owners: Mapping[str, int], collectives: Collectives, like: Tensor
) -> tuple[list[Layer], Tensor]:
    """Send this rank's factors to the next one; returns the layers that come from the one before, and their factors."""
    ahead, behind = (collectives.rank + 1) % collectives.ranks, (collectives.rank - 1) % collectives.ranks
    going, coming = ([layer for layer in layers if owners[layer.name] == rank] for rank in (collectives.rank, behind))
    out, into = factors.packed(going, like), factors.packed(coming, like, empty=True)
    works = []
    if going:
        works.append(collectives.pass_on(out, collectives.rank, ahead, "rotated"))
    if coming:
        works.append(collectives.pass_on(into, behind, collectives.rank, "rotated"))
    for work in works:
        work.wait()
    return coming, into
