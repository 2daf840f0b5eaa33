"""From Kronecker factors to preconditioned gradients: the eigen path, and the Cholesky path with pi-damping."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Below this an eigenvalue counts as zero (as in the DP-KFAC authors' code).
LEAST_EIGENVALUE = 1e-10
#: Entries of a factor below this are set to zero before LAPACK sees them: it fails on what decays to denormals.
TINY = 1e-30
#: Bounds of pi, the share of the damping that goes to A.
PI = 1e-6, 1e6


class InverseError(ArithmeticError):
    """A factor that no remedy makes invertible."""


@dataclass(frozen=True)
class EigenInverse:
    """(G ⊗ A + γI)⁻¹ in the eigenbases of its factors.

    Parameters
    ----------
    q_a, q_g : Tensor
        Eigenvectors, (a, a) and (g, g).
    share : Tensor
        (g, a): 1 / (d_G d_Aᵀ + γ), with the damping of the moment when it was made.
    """

    q_a: Tensor
    q_g: Tensor
    share: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """V = Q_G [(Q_Gᵀ D Q_A) · share] Q_Aᵀ for D of shape (g, a)."""
        turned = self.q_g.T @ gradient.to(self.share.dtype) @ self.q_a
        return self.q_g @ (turned * self.share) @ self.q_a.T

    def tensors(self) -> tuple[Tensor, ...]:
        """What another rank needs to precondition too: F_l + W_l numbers."""
        return self.q_a, self.q_g, self.share


@dataclass(frozen=True)
class CholeskyInverse:
    """(G + √γ/π I)⁻¹ and (A + π√γ I)⁻¹, which approximate the damped product.

    Parameters
    ----------
    inverse_a, inverse_g : Tensor
        (a, a) and (g, g).
    """

    inverse_a: Tensor
    inverse_g: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """V = G⁻¹ D A⁻¹ for D of shape (g, a)."""
        return self.inverse_g @ gradient.to(self.inverse_a.dtype) @ self.inverse_a

    def tensors(self) -> tuple[Tensor, ...]:
        """What another rank needs to precondition too: F_l numbers."""
        return self.inverse_a, self.inverse_g


Inverse = EigenInverse | CholeskyInverse


def eigen_inverse(factor_a: Tensor, factor_g: Tensor, damping: float) -> EigenInverse:
    """Decompose both factors.

    Raises
    ------
    InverseError
        LAPACK gave up in spite of all remedies, or a factor is not finite.
    """
    d_a, q_a = _eigh(factor_a)
    d_g, q_g = _eigh(factor_g)
    return EigenInverse(q_a, q_g, 1 / (torch.outer(d_g, d_a) + damping))


def cholesky_inverse(factor_a: Tensor, factor_g: Tensor, damping: float, pi_damping: bool = True) -> CholeskyInverse:
    """Invert both factors, damped.

    Parameters
    ----------
    pi_damping : bool
        Share √γ between the factors by their mean traces; False damps both by γ, as kfac-pytorch does.

    Raises
    ------
    InverseError
        G is zero (there is nothing to learn of this layer yet), or a damped factor is not positive definite.
    """
    on_a = on_g = damping
    if pi_damping:
        mean_a, mean_g = factor_a.trace() / len(factor_a), factor_g.trace() / len(factor_g)
        if not mean_g > 0:
            raise InverseError("the trace of G is not above zero")
        pi = float((mean_a / mean_g).sqrt().clamp(*PI))
        on_a, on_g = pi * damping**0.5, damping**0.5 / pi
    return CholeskyInverse(_inverted(factor_a, on_a), _inverted(factor_g, on_g))


def _inverted(factor: Tensor, damping: float) -> Tensor:
    # A copy: the running average itself must never be damped.
    damped = factor + damping * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    root, failed = torch.linalg.cholesky_ex(damped)
    if failed.any() or not torch.isfinite(root).all():
        raise InverseError("a damped factor is not positive definite")
    # LAPACK's lies column by column; see _eigh.
    return torch.cholesky_inverse(root).contiguous()


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, small ones zero, and eigenvectors.

    fp32 ``eigh`` fails on finite matrices whose entries decay to denormals (units that died): those are flushed, then
    the diagonal is lifted a little, then float64 is tried.
    """
    if not torch.isfinite(factor).all():
        raise InverseError("a factor is not finite")
    flushed = torch.where(factor.abs() < TINY, torch.zeros_like(factor), factor)
    lift = 1e-7 * flushed.diagonal().mean()
    for attempt in ("as it is", "lifted", "float64"):
        matrix = flushed if attempt == "as it is" else flushed + lift * torch.eye(len(factor)).to(factor)
        if attempt == "float64":
            matrix = matrix.double()
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            log.warning("eigh of a factor of side %d failed, %s", len(factor), attempt)
            continue
        values = torch.where(values <= LEAST_EIGENVALUE, torch.zeros_like(values), values)
        # Row by row in memory, as a rank that received them has them: the same layout, the same bits.
        return values.to(factor.dtype), vectors.to(factor.dtype).contiguous()
    raise InverseError("eigh did not converge")


def kl_scale(product: float, lr: float, bound: float | None) -> float:
    """ν = min(1, √(κ / (η² |Σ⟨V, D⟩|))); 1 without a bound, or if there is nothing to scale."""
    change = lr * lr * abs(product)
    if bound is None or change == 0:
        return 1.0
    return float(min(1.0, (bound / change) ** 0.5))


def inner(first: Tensor, second: Tensor) -> float:
    """⟨first, second⟩ in float64."""
    return float((first.double() * second.double()).sum())
