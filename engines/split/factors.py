"""Rank-r factors of a first matrix W1: from its singular values, from the data's principal directions, or at
random.

All factorizations are computed on the CPU in fp64 and have their signs fixed, so that two ends that factorize
independently agree. Source: specification of split fine-tuning §3.1, §3.4, §11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """A code z = S·V·a of a vector a, and the linear map that rebuilds a from it: a ≈ R·z + c.

    Attributes
    ----------
    v : Tensor [r, d] fp64
        Directions, orthonormal rows.
    s : Tensor [r, r] fp64
        Scales, diagonal at first.
    r : Tensor [d, r] fp64
        Rebuilds the vector.
    c : Tensor [d] fp64
        Offset of the rebuilt vector.
    """

    v: Tensor
    s: Tensor
    r: Tensor
    c: Tensor

    def through(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """U [f, r] and its bias [f], such that U·z + bias = W1·(R·z + c) + b1; fp64."""
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        return weight @ self.r, bias + weight @ self.c


def svd_basis(weight: Tensor, rank: int) -> Basis:
    """The paper's start: V = Vh[:r], S = diag(σ), and R = Vhᵀ·diag(1/σ), so that U = W1·R is the left factor.

    Parameters
    ----------
    weight : Tensor [f, d]
        The first matrix.
    rank : int
        1 to min(f, d).
    """
    _, sigma, vh = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    v = fix_signs(vh[:rank]).contiguous()
    sigma = sigma[:rank]
    # A singular value of zero carries nothing; its inverse must not carry infinity.
    safe = torch.where(sigma > sigma[0] * 1e-12, sigma, torch.inf)
    return Basis(
        v,
        torch.diag(sigma),
        (v.T / safe).contiguous(),
        torch.zeros(weight.shape[1], dtype=torch.float64),
    )


def pca_basis(mean: Tensor, covariance: Tensor, rank: int) -> Basis:
    """Activation-aware start: V = top principal directions P, S = I, R = Pᵀ, c = μ − PᵀPμ.

    Parameters
    ----------
    mean : Tensor [d]
    covariance : Tensor [d, d]
    rank : int
    """
    return basis_of(fix_signs(principal_directions(covariance)[:rank]), mean)


def basis_of(v: Tensor, mean: Tensor) -> Basis:
    """The basis of directions V [r, d] with S = I that rebuilds around a mean μ [d]: R = Vᵀ, c = μ − VᵀVμ."""
    v, mean = v.double().cpu().contiguous(), mean.double().cpu()
    return Basis(v, torch.eye(len(v), dtype=torch.float64), v.T.contiguous(), mean - v.T @ (v @ mean))


def random_basis(width: int, rank: int, seed: int) -> Basis:
    """A random subspace: orthonormal V from a seed, S = I, R = Vᵀ, c = 0; the baseline that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    v = fix_signs(torch.linalg.qr(normal)[0].T).contiguous()
    return Basis(v, torch.eye(rank, dtype=torch.float64), v.T.contiguous(), torch.zeros(width, dtype=torch.float64))


def principal_directions(covariance: Tensor) -> Tensor:
    """All eigenvectors of a covariance [d, d] as rows, the most important first; fp64."""
    vectors: Tensor = torch.linalg.eigh(covariance.double())[1]
    return vectors.T.flip(0)


def fix_signs(rows: Tensor) -> Tensor:
    """Flip rows so that the entry of largest magnitude in each is positive: vectors are only defined up to
    sign."""
    peak = rows.abs().argmax(dim=1, keepdim=True)
    flipped: Tensor = torch.where(rows.gather(1, peak) < 0, -rows, rows)
    return flipped
