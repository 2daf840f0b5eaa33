"""What each scheme sends and keeps, by formula (specification §8.2); a test holds the counters against them."""

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
    """Numbers that all ranks together send in one step in which factors and inverses are updated."""

    gradients: int
    factors: int
    inverses: int
    preconditioned: int
    scalars: int


@dataclass(frozen=True)
class Scheme:
    """Who knows what.

    Parameters
    ----------
    source : "local", "reduce", "allreduce" or "rotate"
        Factors of the owner's own batch; of all batches, at the owner; at everybody; local, the owner changing.
    workers : int
        Ranks that precondition a layer: 1, all, or so many that they divide the ranks.
    exchange : "allreduce" or "owner"
        Averaged gradients for everybody, or of each layer for its owner only.
    symmetric : bool
        Factors cross as upper triangles.
    inverse : "eigen" or "cholesky"
    """

    source: FactorSource = "local"
    workers: int = 1
    exchange: GradExchange = "allreduce"
    symmetric: bool = False
    inverse: Literal["eigen", "cholesky"] = "eigen"


def sgd(parameters: int, ranks: int) -> Volume:
    """Plain data-parallel SGD: one all-reduce of all M gradients."""
    return Volume(2 * (ranks - 1) * parameters, 0, 0, 0, 0)


def volume(layers: Sequence[Layer], parameters: int, ranks: int, scheme: Scheme) -> Volume:
    """Numbers on the wire of one step.

    Parameters
    ----------
    parameters : int
        M, all trainable numbers of the model.
    """
    others = ranks - 1
    weights = sum(layer.weights for layer in layers)
    factors = sum(_factor_numbers(layer, scheme.symmetric) for layer in layers)
    full = sum(layer.factors for layer in layers)
    owner = scheme.exchange == "owner"
    gradients = others * weights + 2 * others * (parameters - weights) if owner else 2 * others * parameters
    crossing = {"local": 0, "rotate": 0, "reduce": others * factors, "allreduce": 2 * others * factors}
    inverse = full + weights if scheme.inverse == "eigen" else full
    return Volume(
        gradients=gradients,
        factors=crossing[scheme.source],
        inverses=(scheme.workers - 1) * inverse,
        preconditioned=(ranks - scheme.workers) * weights,
        scalars=2 * others if owner else 0,
    )


def state(layers: Sequence[Layer], owners: Mapping[str, int], rank: int, ranks: int, scheme: Scheme) -> int:
    """Numbers of factors and inverses that a rank keeps."""
    kept = 0
    columns = ranks // scheme.workers
    for layer in layers:
        inverse = layer.factors + (layer.weights if scheme.inverse == "eigen" else 0)
        if scheme.source == "allreduce" or owners[layer.name] == rank:
            kept += layer.factors
        if owners[layer.name] % columns == rank % columns:
            kept += inverse
    return kept


def _factor_numbers(layer: Layer, symmetric: bool) -> int:
    if symmetric:
        return (layer.a * (layer.a + 1) + layer.g * (layer.g + 1)) // 2
    return layer.factors
