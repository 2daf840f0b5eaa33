"""Damped inverses of Kronecker factors: by eigendecomposition, or by Cholesky with π-damping; and KL clipping.

See ``docs/methods/dp_kfac.md``, sections 4 and 5.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Eigenvalues up to this are set to zero, as in the DP-KFAC authors' code.
EIGENVALUE_FLOOR = 1e-10
#: Smaller entries of a factor are set to zero: LAPACK fails on entries that decay to denormals.
FLUSH_BELOW = 1e-30
#: Range of π, which splits the damping between A and G.
PI_RANGE = 1e-6, 1e6


class InverseError(ArithmeticError):
    """A factor could not be inverted."""


@dataclass(frozen=True)
class EigenInverse:
    """(G ⊗ A + γI)⁻¹ in the eigenbases of A and G.

    Parameters
    ----------
    q_a, q_g : Tensor
        Eigenvectors, (a, a) and (g, g).
    reciprocals : Tensor
        1 / (d_G d_Aᵀ + γ), (g, a), with the damping γ at the time of the decomposition.
    """

    q_a: Tensor
    q_g: Tensor
    reciprocals: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return V = Q_G [(Q_Gᵀ D Q_A) ∘ reciprocals] Q_Aᵀ for a gradient D of shape (g, a)."""
        rotated = self.q_g.T @ gradient.to(self.reciprocals.dtype) @ self.q_a
        return self.q_g @ (rotated * self.reciprocals) @ self.q_a.T

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what another rank needs to precondition the layer: F_l + W_l elements."""
        return self.q_a, self.q_g, self.reciprocals


@dataclass(frozen=True)
class CholeskyInverse:
    """(G + √γ/π I)⁻¹ and (A + π√γ I)⁻¹, an approximation of (G ⊗ A + γI)⁻¹.

    Parameters
    ----------
    inverse_a, inverse_g : Tensor
        (a, a) and (g, g).
    """

    inverse_a: Tensor
    inverse_g: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return V = G⁻¹ D A⁻¹, with the damped inverses, for a gradient D of shape (g, a)."""
        return self.inverse_g @ gradient.to(self.inverse_a.dtype) @ self.inverse_a

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what another rank needs to precondition the layer: F_l elements."""
        return self.inverse_a, self.inverse_g


Inverse = EigenInverse | CholeskyInverse


def eigen_inverse(factor_a: Tensor, factor_g: Tensor, damping: float) -> EigenInverse:
    """Decompose both factors into eigenvalues and eigenvectors.

    Raises
    ------
    InverseError
        The decomposition did not converge, or a factor is not finite.
    """
    d_a, q_a = _eigh(factor_a)
    d_g, q_g = _eigh(factor_g)
    return EigenInverse(q_a, q_g, 1 / (torch.outer(d_g, d_a) + damping))


def cholesky_inverse(factor_a: Tensor, factor_g: Tensor, damping: float, pi_damping: bool = True) -> CholeskyInverse:
    """Invert both damped factors.

    Parameters
    ----------
    pi_damping : bool
        Split √γ between the factors by their mean traces; False: add γ to both, as kfac-pytorch does.

    Raises
    ------
    InverseError
        The trace of G is zero, or a damped factor is not positive definite.
    """
    damping_a = damping_g = damping
    if pi_damping:
        mean_a, mean_g = factor_a.trace() / len(factor_a), factor_g.trace() / len(factor_g)
        if not mean_g > 0:
            raise InverseError("the trace of G is not positive")
        pi = float((mean_a / mean_g).sqrt().clamp(*PI_RANGE))
        damping_a, damping_g = pi * damping**0.5, damping**0.5 / pi
    return CholeskyInverse(_invert(factor_a, damping_a), _invert(factor_g, damping_g))


def _invert(factor: Tensor, damping: float) -> Tensor:
    # Not in place: the running average must stay undamped.
    damped = factor + damping * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    root, failed = torch.linalg.cholesky_ex(damped)
    if failed.any() or not torch.isfinite(root).all():
        raise InverseError("a damped factor is not positive definite")
    # LAPACK returns column-major memory; see _eigh.
    return torch.cholesky_inverse(root).contiguous()


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, with small ones set to zero, and eigenvectors.

    ``eigh`` in float32 fails on finite matrices whose entries decay to denormals (dead units). Such entries are set to
    zero first. If it fails nevertheless, a small jitter is added to the diagonal, and then float64 is tried.
    """
    if not torch.isfinite(factor).all():
        raise InverseError("a factor is not finite")
    flushed = torch.where(factor.abs() < FLUSH_BELOW, torch.zeros_like(factor), factor)
    jitter = 1e-7 * flushed.diagonal().mean()
    for attempt in ("float32", "jitter", "float64"):
        matrix = flushed if attempt == "float32" else flushed + jitter * torch.eye(len(factor)).to(factor)
        if attempt == "float64":
            matrix = matrix.double()
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            log.warning("eigh of a %d x %d factor failed (attempt: %s)", len(factor), len(factor), attempt)
            continue
        values = torch.where(values <= EIGENVALUE_FLOOR, torch.zeros_like(values), values)
        # Row-major, as on a rank that receives them: the memory layout affects the bits of later products.
        return values.to(factor.dtype), vectors.to(factor.dtype).contiguous()
    raise InverseError("eigh did not converge")


def kl_scale(product: float, lr: float, bound: float | None) -> float:
    """Return ν = min(1, √(κ / (η² |Σ⟨V, D⟩|))); 1 without a bound or if the denominator is 0.

    Parameters
    ----------
    product : float
        Σ⟨V, D⟩ over all layers.
    lr : float
        Learning rate η.
    bound : float, optional
        κ.
    """
    change = lr * lr * abs(product)
    if bound is None or change == 0:
        return 1.0
    return float(min(1.0, (bound / change) ** 0.5))


def inner_product(first: Tensor, second: Tensor) -> float:
    """Return ⟨first, second⟩, computed in float64."""
    return float((first.double() * second.double()).sum())
