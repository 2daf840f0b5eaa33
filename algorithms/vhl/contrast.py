"""Supervised contrastive loss over all samples of a batch, and row normalization."""

from __future__ import annotations

import torch
from torch import Tensor

#: Smallest norm that :func:`normalize_rows` divides by.
EPS = 1e-12


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over **all** samples i of -(1/|P(i)|) Σ_{j∈P(i)} (z_i·z_j/τ - log Σ_{a≠i} exp(z_i·z_a/τ)).

    P(i) are the other samples with the label of i; a sample without any contributes 0 and stays in the mean.

    Parameters
    ----------
    features : Tensor [N, d]
        z, rows of norm 1. Half precision is converted to fp32, with autocast off.
    labels : Tensor [N]
        Any integer dtype.
    temperature : float
        τ > 0.

    Returns
    -------
    Tensor
        Scalar ≥ 0; 0 for fewer than two samples.

    Notes
    -----
    Source: Khosla et al., arXiv 2004.11362 (L_out: the sum is outside the logarithm); ``docs/methods/vhl.md``, section
    3.2.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = at_least_fp32(features)
        return contrastive_from_logits(z @ z.T / temperature, labels)


def contrastive_from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss from similarities divided by τ, [N, N] fp32 or fp64.

    The diagonal is ignored, and adding a constant to a row does not change the loss.
    """
    if len(labels) < 2:
        return logits.sum() * 0
    itself = torch.eye(len(labels), dtype=torch.bool, device=logits.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    # log_softmax subtracts each row's maximum before exp; masking the diagonal excludes i itself from the denominator.
    log_probability = logits.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    positive_sum = torch.where(positive, log_probability, 0).sum(dim=1)
    return -(positive_sum / positive.sum(dim=1).clamp(min=1)).mean()


def normalize_rows(features: Tensor) -> Tensor:
    """Scale the rows of ``features`` [N, d] to norm 1, in fp32 or fp64; a zero row stays zero and gets no gradient.

    Dividing by max(norm, 1e-12) alone would multiply the gradient of a zero row by 1e12.
    """
    x = at_least_fp32(features)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = torch.where(norm > EPS, x, x.detach()) / norm.clamp(min=EPS)
    return unit


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` as fp32, or unchanged if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()
