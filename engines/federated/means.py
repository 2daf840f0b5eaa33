"""Means of named scalars over the steps of one client's training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Means:
    """Accumulates scalars per training step and reports their means.

    Parameters
    ----------
    names : sequence of str
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sums = torch.zeros(len(self._names), dtype=torch.float64)
        self._steps = 0

    @torch.no_grad()
    def add(self, *values: Tensor) -> None:
        """Add a step's scalars, in the order of the names."""
        self._sums += torch.stack(values)
        self._steps += 1

    def clear(self) -> None:
        """Reset all sums."""
        self._sums.zero_()
        self._steps = 0

    def compute(self) -> dict[str, float]:
        """Return the means; empty before the first step."""
        if not self._steps:
            return {}
        return dict(zip(self._names, (self._sums / self._steps).tolist(), strict=True))
