"""Formulas for what each scheme sends and keeps: ``docs/methods/dp_kfac.md``, section 8. Tests compare the counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .layers import Layer

Strategy: TypeAlias = Literal["dp", "mem_opt", "comm_opt", "hybrid"]
FactorSource: TypeAlias = Literal["local", "reduce", "allreduce", "rotate"]
GradExchange: TypeAlias = Literal["allreduce", "owner"]


@dataclass(frozen=True)
class Volume:
    """Elements that all ranks together send in a step that updates factors and inverses."""

    gradients: int
    factors: int
    inverses: int
    preconditioned: int
    scalars: int


@dataclass(frozen=True)
class Scheme:
    """Where factors, inverses and gradients are available.

    Parameters
    ----------
    source : {"local", "reduce", "allreduce", "rotate"}
        Factors of the owner's batch; averaged over all ranks, at the owner or on all ranks; or of the owner's batch,
        with rotating owners.
    workers : int
        Ranks that precondition a layer; a divisor of the number of ranks.
    exchange : {"allreduce", "owner"}
        Averaged gradients on all ranks, or those of a layer at its owner only.
    symmetric : bool
        Factors are sent as upper triangles.
    inverse : {"eigen", "cholesky"}
    """

    source: FactorSource = "local"
    workers: int = 1
    exchange: GradExchange = "allreduce"
    symmetric: bool = False
    inverse: Literal["eigen", "cholesky"] = "eigen"


def sgd_volume(parameters: int, ranks: int) -> Volume:
    """Return the volume of plain data-parallel SGD: one all-reduce of M gradients."""
    return Volume(2 * (ranks - 1) * parameters, 0, 0, 0, 0)


def step_volume(layers: Sequence[Layer], parameters: int, ranks: int, scheme: Scheme) -> Volume:
    """Return the volume of one step of K-FAC.

    Parameters
    ----------
    layers : sequence of Layer
    parameters : int
        M, all trainable parameters of the model.
    ranks : int
        P.
    scheme : Scheme
    """
    others = ranks - 1
    weights = sum(layer.gradient_elements for layer in layers)
    factors = sum(_sent_factor_elements(layer, scheme.symmetric) for layer in layers)
    full = sum(layer.factor_elements for layer in layers)
    owner = scheme.exchange == "owner"
    gradients = others * weights + 2 * others * (parameters - weights) if owner else 2 * others * parameters
    sent = {"local": 0, "rotate": 0, "reduce": others * factors, "allreduce": 2 * others * factors}
    inverse = full + weights if scheme.inverse == "eigen" else full
    return Volume(
        gradients=gradients,
        factors=sent[scheme.source],
        inverses=(scheme.workers - 1) * inverse,
        preconditioned=(ranks - scheme.workers) * weights,
        scalars=2 * others if owner else 0,
    )


def state_elements(layers: Sequence[Layer], owners: Mapping[str, int], rank: int, ranks: int, scheme: Scheme) -> int:
    """Return the elements of factors and inverses that a rank keeps."""
    kept = 0
    columns = ranks // scheme.workers
    for layer in layers:
        inverse = layer.factor_elements + (layer.gradient_elements if scheme.inverse == "eigen" else 0)
        if scheme.source == "allreduce" or owners[layer.name] == rank:
            kept += layer.factor_elements
        if owners[layer.name] % columns == rank % columns:
            kept += inverse
    return kept


def _sent_factor_elements(layer: Layer, symmetric: bool) -> int:
    if symmetric:
        return (layer.a * (layer.a + 1) + layer.g * (layer.g + 1)) // 2
    return layer.factor_elements
