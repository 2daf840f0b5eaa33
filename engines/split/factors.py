"""Rank-r bases for a code: from the SVD of a weight matrix, from the principal directions of data, or random.

All factorizations are computed on the CPU in fp64 with fixed signs, so that two sides that factorize independently
agree. Equations: ``docs/methods/split_fine_tuning.md``, sections 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """A linear code z = S·V·a of a vector a, and its linear reconstruction a ≈ R·z + c.

    Attributes
    ----------
    v : Tensor [r, d] fp64
        Directions; rows are orthonormal.
    s : Tensor [r, r] fp64
        Scales; diagonal at initialization.
    r : Tensor [d, r] fp64
        Reconstruction matrix.
    c : Tensor [d] fp64
        Reconstruction offset.
    """

    v: Tensor
    s: Tensor
    r: Tensor
    c: Tensor

    def fold_into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return U [f, r] and a bias [f] with U·z + bias = W·(R·z + c) + b for ``weight`` W and ``bias`` b; fp64."""
        weight, bias = weight.detach().cpu().double(), bias.detach().cpu().double()
        return weight @ self.r, bias + weight @ self.c


def svd_basis(weight: Tensor, rank: int) -> Basis:
    """Truncated SVD of W1 (the paper's initialization): V = Vh[:r], S = diag(σ), R = Vhᵀ·diag(1/σ), so U = W1·R.

    Parameters
    ----------
    weight : Tensor [f, d]
        W1.
    rank : int
        1 to min(f, d).
    """
    _, sigma, vh = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    v = fix_signs(vh[:rank]).contiguous()
    sigma = sigma[:rank]
    # The direction of a zero singular value carries nothing: use 0 for its inverse, not infinity.
    safe = torch.where(sigma > sigma[0] * 1e-12, sigma, torch.inf)
    return Basis(
        v,
        torch.diag(sigma),
        (v.T / safe).contiguous(),
        torch.zeros(weight.shape[1], dtype=torch.float64),
    )


def pca_basis(mean: Tensor, covariance: Tensor, rank: int) -> Basis:
    """Basis of the top r principal directions P of data: V = P, S = I, R = Pᵀ, c = μ − PᵀPμ.

    Parameters
    ----------
    mean : Tensor [d]
    covariance : Tensor [d, d]
    rank : int
    """
    return basis_of(principal_axes(covariance, rank), mean)


def pca_basis_of_rows(rows: Tensor, rank: int) -> Basis:
    """Basis of the top r principal directions of ``rows`` [M, d], on any device."""
    wide = rows.detach().cpu().double()
    mean = wide.mean(0)
    centered = wide - mean
    return pca_basis(mean, centered.T @ centered / max(1, len(wide)), rank)


def basis_of(v: Tensor, mean: Tensor) -> Basis:
    """Return the basis of directions V [r, d] around a mean μ [d]: S = I, R = Vᵀ, c = μ − VᵀVμ."""
    v, mean = v.cpu().double().contiguous(), mean.cpu().double()
    return Basis(v, torch.eye(len(v), dtype=torch.float64), v.T.contiguous(), mean - v.T @ (v @ mean))


def random_basis(width: int, rank: int, seed: int) -> Basis:
    """Return a random basis: orthonormal V drawn from ``seed``, S = I, R = Vᵀ, c = 0."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    v = fix_signs(torch.linalg.qr(normal)[0].T).contiguous()
    return Basis(v, torch.eye(rank, dtype=torch.float64), v.T.contiguous(), torch.zeros(width, dtype=torch.float64))


def principal_directions(covariance: Tensor) -> Tensor:
    """Return all eigenvectors of a covariance [d, d] as rows, by decreasing eigenvalue; fp64."""
    vectors: Tensor = torch.linalg.eigh(covariance.double())[1]
    return vectors.T.flip(0)


def principal_axes(covariance: Tensor, rank: int) -> Tensor:
    """Return the top r principal directions [r, d] of a covariance [d, d] with fixed signs; fp64."""
    return fix_signs(principal_directions(covariance)[:rank])


def fix_signs(rows: Tensor) -> Tensor:
    """Flip rows so that each one's entry of largest magnitude is positive; singular vectors have arbitrary signs."""
    peak = rows.abs().argmax(dim=1, keepdim=True)
    flipped: Tensor = torch.where(rows.gather(1, peak) < 0, -rows, rows)
    return flipped
