"""Settings of the preconditioner and their validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from ...core.errors import ConfigError
from .assignment import Rule
from .factors import ConvScale, SeqReduction
from .volumes import FactorSource, GradExchange, Scheme, Strategy

#: A constant, or a function of the step.
Scheduled: TypeAlias = float | Callable[[int], float]


def value_at(value: Scheduled, step: int) -> float:
    """Return the value at a step."""
    return float(value(step)) if callable(value) else float(value)


@dataclass(frozen=True)
class Options:
    """Settings of :class:`~farshore.algorithms.dp_kfac.DPKFAC`, which documents them."""

    damping: Scheduled = 0.03
    kl_clip: Scheduled | None = 1e-3
    ema_old: Scheduled = 0.95
    factor_steps: int = 10
    inv_steps: int = 100
    inverse: Literal["eigen", "cholesky"] = "eigen"
    pi_damping: bool = True
    init: Literal["first", "identity"] = "first"
    factor_source: FactorSource = "local"
    rotate_every: int = 1
    grad_exchange: GradExchange = "allreduce"
    exchange_way: Literal["all_to_all", "reduce"] | None = None
    strategy: Strategy = "dp"
    grad_worker_fraction: float | None = None
    symmetry_aware: bool = False
    assignment: Rule | Mapping[str, int] = "lpt"
    node_speed: Sequence[float] | None = None
    fuse_mb: float = 25.0
    conv_scale: ConvScale = "kfc"
    seq_reduction: SeqReduction = "mean"
    fisher: Literal["emp", "mc1"] = "emp"
    kfac_batch: int | None = None
    skip_layers: Sequence[str] = ()
    exclude_out_features: int | None = None
    accumulation_steps: int = 1
    factor_dtype: torch.dtype | None = None
    inv_dtype: torch.dtype = torch.float32
    bcast_dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("factor_steps", "inv_steps", "accumulation_steps", "rotate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", hint="use 1 or more")
        for name in ("damping", "ema_old", "kl_clip"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not (0 <= value <= 1 if name == "ema_old" else value > 0):
                raise ConfigError(
                    f"{name} is {value}",
                    hint="use a number from 0 to 1" if name == "ema_old" else "use a number above 0",
                )
        if self.fuse_mb <= 0:
            raise ConfigError(f"fuse_mb is {self.fuse_mb}", hint="use a size above 0")
        if self.strategy != "dp" and self.factor_source != "local":
            raise ConfigError(f"factor_source='{self.factor_source}' requires strategy 'dp', not '{self.strategy}'")
        if self.strategy != "dp" and self.grad_exchange == "owner":
            raise ConfigError(
                f"strategy '{self.strategy}' needs all gradients on all ranks", hint="grad_exchange='allreduce'"
            )
        if self.inv_steps % self.factor_steps:
            warnings.warn(
                f"inv_steps {self.inv_steps} is not a multiple of factor_steps {self.factor_steps}: "
                "some inverses are computed from unchanged factors",
                stacklevel=4,
            )

    def scheme(self, ranks: int) -> Scheme:
        """Return the distribution scheme for a number of ranks.

        Raises
        ------
        ConfigError
            The gradient workers of ``grad_worker_fraction`` do not divide the ranks.
        """
        source: FactorSource = self.factor_source if self.strategy == "dp" else "allreduce"
        workers = {"dp": 1, "mem_opt": 1, "comm_opt": ranks}.get(self.strategy)
        if workers is None:
            workers = max(1, round(ranks * (0.5 if self.grad_worker_fraction is None else self.grad_worker_fraction)))
            if workers < 1 or ranks % workers:
                raise ConfigError(
                    f"grad_worker_fraction {self.grad_worker_fraction} of {ranks} ranks is {workers} gradient workers",
                    hint="use a fraction of the ranks that divides them evenly",
                )
        return Scheme(source, workers, self.grad_exchange, self.symmetry_aware, self.inverse)
