"""What a DP-KFAC run can be told: a data-parallel run, and the preconditioner's settings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ...engines.data_parallel.config import DataParallel


class DPKFACRun(DataParallel):
    """Configuration of the method; see :class:`~farshore.algorithms.dp_kfac.DPKFAC` for the preconditioner."""

    damping: float = Field(0.03, gt=0, description="γ")
    kl_clip: float | None = Field(1e-3, gt=0, description="κ; null: nothing is scaled")
    ema_old: float = Field(0.95, ge=0, le=1, description="share of the old running average of factors")
    factor_steps: int = Field(10, ge=1, description="steps between updates of factors")
    inv_steps: int = Field(100, ge=1, description="steps between updates of inverses")
    inverse: Literal["eigen", "cholesky"] = "eigen"
    strategy: Literal["dp", "mem_opt", "comm_opt", "hybrid"] = "dp"
    factor_source: Literal["local", "reduce", "allreduce", "rotate"] = Field(
        "local", description="whose batches make factors; not local where nodes hold unlike data"
    )
    grad_exchange: Literal["allreduce", "owner"] = Field("owner", description="owner: a step moves what SGD moves")
    symmetry_aware: bool = False
    assignment: Literal["lpt", "round_robin"] = "lpt"
    fisher: Literal["emp", "mc1"] = "emp"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.compression != "none":
            raise ValueError("compression is for data_parallel: DP-KFAC takes the place of torch's communication hooks")
        if self.strategy != "dp" and self.grad_exchange == "owner":
            raise ValueError(f"strategy '{self.strategy}' needs all gradients everywhere: grad_exchange=allreduce")
        if self.strategy != "dp" and self.factor_source != "local":
            raise ValueError(f"factor_source is for strategy 'dp', not '{self.strategy}'")
        return self

    def settings(self) -> dict[str, Any]:
        """What the preconditioner is made with."""
        names = DPKFACRun.model_fields.keys() - DataParallel.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(names)}
