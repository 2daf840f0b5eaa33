"""Dropout whose masks depend on the step and nothing else.

torch draws every dropout mask of a process from one generator, so masks would depend on what else ran before. Here each
half of the model owns a generator that is re-seeded from the seed tree before every micro-batch: the same masks come
out simulated, over a network, pipelined and after a restart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.seeds import Seed


class SeededDropout(nn.Module):
    """``nn.Dropout`` on a generator of its own; identity in evaluation.

    Parameters
    ----------
    p : float
        Share of elements set to zero; the others are scaled by ``1 / (1 - p)``.
    generator : torch.Generator
        Shared by all dropouts of one half.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.empty_like(x).bernoulli_(1.0 - self.p, generator=self.generator)
        return x * keep.div_(1.0 - self.p)


class DropoutSeeds:
    """Replaces every ``nn.Dropout`` inside ``module`` and re-seeds them together."""

    def __init__(self, module: nn.Module, seed: Seed) -> None:
        self._seed = seed
        self._generator = torch.Generator()
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, SeededDropout(child.p, self._generator))

    def at(self, step: int, micro: int) -> None:
        """Start the masks of a micro-batch."""
        self._generator.manual_seed(self._seed.child("step", step, "micro", micro).value)
