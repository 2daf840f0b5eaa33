"""Supervised contrastive loss: what has one label comes together, the rest moves apart."""

from __future__ import annotations

import torch
from torch import Tensor

#: Norms below are taken as this.
EPS = 1e-12


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over **all** samples i of -(1/|P(i)|) Σ_{j∈P(i)} (z_i·z_j/τ - log Σ_{a≠i} exp(z_i·z_a/τ)).

    P(i) are the other samples with the label of i; a sample that has none counts as zero, not as absent.

    Parameters
    ----------
    features : Tensor [N, d]
        z, already of norm 1. Half precision is computed in fp32, with autocast off.
    labels : Tensor [N]
        Of any integer type.
    temperature : float
        τ > 0.

    Returns
    -------
    Tensor
        Scalar ≥ 0; 0 for fewer than two samples.

    Notes
    -----
    Source: Khosla et al., arXiv 2004.11362 (the sum outside the logarithm); specification of VHL §3.2.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = at_least_single(features)
        return contrast_of(z @ z.T / temperature, labels)


def contrast_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of similarities over τ, [N, N] fp32 or fp64; the diagonal is ignored, rows may be shifted freely."""
    if len(labels) < 2:
        return logits.sum() * 0
    itself = torch.eye(len(labels), dtype=torch.bool, device=logits.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    # log_softmax takes each row's maximum off before exp; leaving out i itself makes its denominator that of the paper.
    log_share = logits.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    of_positive = torch.where(positive, log_share, 0).sum(dim=1)
    return -(of_positive / positive.sum(dim=1).clamp(min=1)).mean()


def to_unit(features: Tensor) -> Tensor:
    """Rows of ``features`` [N, d] scaled to norm 1, in fp32 or fp64; a row of zeros stays zero and gets no gradient.

    Plain division by max(norm, 1e-12) would give such a row a gradient times 1e12.
    """
    x = at_least_single(features)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = torch.where(norm > EPS, x, x.detach()) / norm.clamp(min=EPS)
    return unit


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is where it is fp64."""
    return x if x.dtype == torch.float64 else x.float()
