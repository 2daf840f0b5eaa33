"""What stands in for virtual features: a fixed map of them, or Gaussians that need no images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...core.seeds import Seed

#: Deviation of a Gaussian anchor from the mean of its class.
SPREAD = 0.05


def feature_map(kind: Literal["random", "orthogonal"], width: int, seed: int) -> Tensor:
    """A fixed matrix [d, d] fp32 that virtual features are multiplied with before they are aligned to.

    ``random`` has independent N(0, 1/d) entries, so lengths stay about the same; ``orthogonal`` keeps them exactly, and
    all angles too. Source: specification of VHL §3.6.
    """
    generator = torch.Generator().manual_seed(Seed(seed).child("feature map").value)
    normal = torch.randn(width, width, generator=generator, dtype=torch.float64)
    fixed: Tensor = normal / width**0.5
    if kind == "orthogonal":
        q, r = torch.linalg.qr(normal)
        # With the signs of R's diagonal taken out, Q is uniform over the rotations and reflections.
        fixed = q * r.diagonal().sign()
    return fixed.float()


def anchor_means(classes: int, width: int, seed: int) -> Tensor:
    """Means of the Gaussian anchors, uniform in [0, 1]^d: [C_v, d] fp32; those of one seed are the same everywhere."""
    generator = torch.Generator().manual_seed(Seed(seed).child("anchors").value)
    return torch.rand(classes, width, generator=generator)


def draw_anchors(means: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Anchors [B_v, d] around the means [C_v, d] of their classes ``labels`` [B_v]; ``generator`` is on the CPU."""
    noise = torch.randn(len(labels), means.shape[1], generator=generator)
    return means[labels] + SPREAD * noise.to(means.device)
