"""Dropout with masks that depend only on seed, step and micro-batch.

torch draws all dropout masks of a process from one generator, so a mask depends on everything that ran before. Both
classes here seed the masks of every micro-batch: they are then the same in simulation, over a network, with pipelining
and after a restart. For equal seeds, both draw the masks that ``nn.Dropout`` draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...core.seeds import Seed
from ...models.devices import forked_generators


class SeededDropout(nn.Module):
    """``nn.Dropout`` with its own generator; identity in evaluation mode.

    Parameters
    ----------
    p : float
        Probability of zeroing an element; the others are scaled by ``1 / (1 - p)``.
    generator : torch.Generator
        Shared by all dropout layers of one half; on the device of its activations.
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


class OwnGeneratorDropout:
    """Replaces every ``nn.Dropout`` inside ``module`` by a :class:`SeededDropout`.

    Programs of one process can run at the same time. Covers dropout layers only: attention must have no dropout.

    Parameters
    ----------
    module : nn.Module
        On ``device``; changed in place.
    seed : Seed
    device : torch.device
    """

    def __init__(self, module: nn.Module, seed: Seed, device: torch.device) -> None:
        self._seed = seed
        self._generator = torch.Generator(device)
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, SeededDropout(child.p, self._generator))

    def reseed(self, step: int, micro: int) -> None:
        """Seed the masks of a micro-batch."""
        self._generator.manual_seed(_masks_seed(self._seed, step, micro))


class GlobalGeneratorDropout:
    """Seeds torch's global generator for a forward pass, and restores it afterwards.

    Covers all dropout, that of fused attention included, but only one program of a process may compute at a time.

    Parameters
    ----------
    seed : Seed
    device : torch.device
    """

    def __init__(self, seed: Seed, device: torch.device) -> None:
        self._seed = seed
        self._device = device

    @contextmanager
    def masks(self, step: int, micro: int) -> Iterator[None]:
        """Draw the masks of a micro-batch within this context."""
        with forked_generators(self._device):
            torch.manual_seed(_masks_seed(self._seed, step, micro))
            yield


def _masks_seed(seed: Seed, step: int, micro: int) -> int:
    return seed.child("step", step, "micro", micro).value
