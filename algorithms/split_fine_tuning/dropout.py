"""Dropout with masks that depend only on seed, step and micro-batch.

torch draws all dropout masks of a process from one generator, so a mask depends on everything that ran before. Here
each half of the model has its own generator, re-seeded before every micro-batch: masks are the same in simulation, over
a network, with pipelining and after a restart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.seeds import Seed


class SeededDropout(nn.Module):
    """``nn.Dropout`` with its own generator; identity in evaluation mode.

    Parameters
    ----------
    p : float
        Probability of zeroing an element; the others are scaled by ``1 / (1 - p)``.
    generator : torch.Generator
        Shared by all dropout layers of one half.
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
    """Replaces every ``nn.Dropout`` inside ``module`` by a :class:`SeededDropout` and re-seeds all of them."""

    def __init__(self, module: nn.Module, seed: Seed) -> None:
        self._seed = seed
        self._generator = torch.Generator()
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, SeededDropout(child.p, self._generator))

    def reseed(self, step: int, micro: int) -> None:
        """Seed the masks of a micro-batch."""
        self._generator.manual_seed(self._seed.child("step", step, "micro", micro).value)
