"""Settings of a DP-KFAC run: those of a data-parallel run and those of the preconditioner."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ...engines.data_parallel.config import DataParallelConfig


class DPKFACConfig(DataParallelConfig):
    """Configuration of ``dp_kfac``; :class:`~farshore.algorithms.dp_kfac.DPKFAC` explains the preconditioner's."""

    damping: float = Field(0.03, gt=0, description="damping γ")
    kl_clip: float | None = Field(1e-3, gt=0, description="KL clipping bound κ; null: no clipping")
    ema_old: float = Field(0.95, ge=0, le=1, description="weight of the old value in the factors' running average")
    factor_steps: int = Field(10, ge=1, description="steps between updates of factors")
    inv_steps: int = Field(100, ge=1, description="steps between updates of inverses")
    inverse: Literal["eigen", "cholesky"] = "eigen"
    strategy: Literal["dp", "mem_opt", "comm_opt", "hybrid"] = "dp"
    factor_source: Literal["local", "reduce", "allreduce", "rotate"] = Field(
        "local", description="ranks whose batches make the factors; not local if the nodes' data differ"
    )
    grad_exchange: Literal["allreduce", "owner"] = Field("owner", description="owner: as many bytes per step as SGD")
    symmetry_aware: bool = False
    assignment: Literal["lpt", "round_robin"] = "lpt"
    fisher: Literal["emp", "mc1"] = "emp"

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.compression != "none":
            raise ValueError("dp_kfac does not support compression: it uses DDP's communication hook itself")
        if self.strategy != "dp" and self.grad_exchange == "owner":
            raise ValueError(f"strategy '{self.strategy}' needs all gradients on all ranks: grad_exchange=allreduce")
        if self.strategy != "dp" and self.factor_source != "local":
            raise ValueError(f"factor_source requires strategy 'dp', not '{self.strategy}'")
        return self

    def preconditioner_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of the preconditioner."""
        names = DPKFACConfig.model_fields.keys() - DataParallelConfig.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(names)}
