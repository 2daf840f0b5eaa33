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
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def add(self, *values: Tensor) -> None:
        """Add a step's scalars, in the order of the names; all on one device."""
        self._rows.append(torch.stack(values))

    def clear(self) -> None:
        """Forget all steps."""
        self._rows.clear()

    def compute(self) -> dict[str, float]:
        """Return the means; empty before the first step."""
        if not self._rows:
            return {}
        sums = [0.0] * len(self._names)
        for row in torch.stack(self._rows).tolist():  # one transfer from the device; double precision, in order
            sums = [total + value for total, value in zip(sums, row, strict=True)]
        return {name: total / len(self._rows) for name, total in zip(self._names, sums, strict=True)}
