"""Factorizations are optimal, have fixed signs, and do not depend on where they are computed."""

from __future__ import annotations

import pytest
import torch

from farshore.engines.split.factors import fix_signs, pca_basis, principal_directions, random_basis, svd_basis


def matrix(rows: int = 48, columns: int = 20) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rank", [1, 4, 13, 20])
def test_truncated_svd_loses_the_remaining_singular_values(rank):
    """Eckart-Young: ||W − U·S·V||² is the sum of the squared singular values that are left out."""
    w = matrix()
    basis = svd_basis(w, rank)
    u, bias = basis.fold_into(w, torch.ones(48))
    lost = (w.double() - u @ basis.s @ basis.v).square().sum()
    rest = torch.linalg.svdvals(w.double())[rank:].square().sum()
    assert abs(float(lost - rest)) < 1e-9
    assert torch.equal(bias, torch.ones(48, dtype=torch.float64))
    assert torch.allclose(u.T @ u, torch.eye(rank, dtype=torch.float64))


def test_signs_do_not_depend_on_the_factorization():
    w = matrix()
    basis = svd_basis(w, 8)
    peaks = basis.v.gather(1, basis.v.abs().argmax(1, keepdim=True))
    assert bool((peaks > 0).all())
    # Reordered rows have the same right singular vectors, and LAPACK may flip their signs.
    other = svd_basis(w.flip(0), 8)
    assert torch.allclose(basis.v, other.v, atol=1e-10)
    assert torch.equal(fix_signs(torch.tensor([[-3.0, 1.0], [0.5, 2.0]])), torch.tensor([[3.0, -1.0], [0.5, 2.0]]))


def test_a_singular_matrix_gives_finite_factors():
    w = matrix()
    w[:, 10:] = 0
    basis = svd_basis(w, 20)
    assert all(bool(torch.isfinite(t).all()) for t in (basis.v, basis.s, basis.r))
    a = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)).double()
    a = torch.cat([a, torch.zeros(5, 10, dtype=torch.float64)], 1)
    assert torch.allclose(a @ basis.v.T @ basis.s.T @ basis.r.T, a, atol=1e-9)


def test_principal_directions_reconstruct_data_better_than_a_random_basis():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(500, 20, generator=generator).double() * torch.arange(1, 21) + 3.0
    mean, covariance = a.mean(0), torch.cov(a.T, correction=0)
    basis = pca_basis(mean, covariance, 5)

    def error(v: torch.Tensor, c: torch.Tensor) -> float:
        return float((a - (a @ v.T @ v + c)).square().sum(1).mean())

    left_out = torch.linalg.eigvalsh(covariance)[:15].sum()
    assert abs(error(basis.v, basis.c) - float(left_out)) < 1e-8
    other = random_basis(20, 5, 0)
    assert error(other.v, mean - other.v.T @ (other.v @ mean)) > 1.5 * float(left_out)
    # Without the offset, the part of the mean outside the directions is lost.
    assert error(basis.v, torch.zeros(20)) > error(basis.v, basis.c) + 1


def test_bases_are_orthonormal_contiguous_and_seeded():
    covariance = torch.cov(matrix(100).T)
    for v in (principal_directions(covariance)[:7], random_basis(20, 7, 1).v, svd_basis(matrix(), 7).v):
        assert torch.allclose(v @ v.T, torch.eye(7, dtype=torch.float64))
    for basis in (svd_basis(matrix(), 7), random_basis(20, 7, 1), pca_basis(torch.ones(20), covariance, 7)):
        assert all(t.is_contiguous() and t.dtype == torch.float64 for t in (basis.v, basis.s, basis.r, basis.c))
    assert torch.equal(random_basis(20, 7, 1).v, random_basis(20, 7, 1).v)
    assert not torch.equal(random_basis(20, 7, 1).v, random_basis(20, 7, 2).v)
