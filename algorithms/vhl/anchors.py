"""Replacements for virtual features in the alignment loss: fixed linear maps of them, and Gaussian anchors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...core.seeds import Seed

#: Standard deviation of the Gaussian anchors of a class.
STD = 0.05


def feature_map(kind: Literal["random", "orthogonal"], width: int, seed: int) -> Tensor:
    """Draw a fixed matrix [d, d] fp32 by which virtual features are multiplied before alignment.

    ``random`` has independent N(0, 1/d) entries, which preserve norms approximately; ``orthogonal`` is drawn uniformly
    from the orthogonal matrices, which preserve norms and angles. See ``docs/methods/vhl.md``, section 3.4.
    """
    generator = torch.Generator().manual_seed(Seed(seed).child("feature map").value)
    normal = torch.randn(width, width, generator=generator, dtype=torch.float64)
    fixed: Tensor = normal / width**0.5
    if kind == "orthogonal":
        q, r = torch.linalg.qr(normal)
        # Multiplying by the signs of R's diagonal makes Q uniformly distributed over the orthogonal group.
        fixed = q * r.diagonal().sign()
    return fixed.float()


def anchor_means(classes: int, width: int, seed: int) -> Tensor:
    """Means of the Gaussian anchors, [C_v, d] fp32, uniform in [0, 1]^d; a function of ``seed`` alone."""
    generator = torch.Generator().manual_seed(Seed(seed).child("anchors").value)
    return torch.rand(classes, width, generator=generator)


def draw_anchors(means: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one anchor per label, [B_v, d], around the class means [C_v, d]; ``generator`` is on the CPU."""
    noise = torch.randn(len(labels), means.shape[1], generator=generator)
    return means[labels] + STD * noise.to(means.device)
