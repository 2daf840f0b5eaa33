"""The preconditioner's settings in a run, for any training method; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...engines.data_parallel.preconditioner import PreconditionerSettings

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from .node_adapter import NodeAdapter


class KFACSettings(PreconditionerSettings):
    """:class:`~farshore.algorithms.dp_kfac.DPKFAC` explains them."""

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

    def check_scheme(self) -> None:
        """Raise ValueError if settings contradict each other."""
        if self.strategy != "dp" and self.grad_exchange == "owner":
            raise ValueError(f"strategy '{self.strategy}' needs all gradients on all ranks: grad_exchange=allreduce")
        if self.strategy != "dp" and self.factor_source != "local":
            raise ValueError(f"factor_source requires strategy 'dp', not '{self.strategy}'")

    def make(self, model: nn.Module, optimizer: Optimizer, accumulate: int) -> NodeAdapter:
        """Return the preconditioner of a model."""
        from .node_adapter import NodeAdapter

        settings = {name: getattr(self, name) for name in sorted(KFACSettings.model_fields)}
        return NodeAdapter(model, optimizer, {**settings, "accumulation_steps": accumulate})
