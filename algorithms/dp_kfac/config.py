"""Settings of a DP-KFAC run: those of a data-parallel run and those of the preconditioner, side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ...engines.data_parallel.image_config import DataParallelConfig
from .settings import KFACSettings


class DPKFACConfig(DataParallelConfig, KFACSettings):
    """Configuration of ``dp_kfac``."""

    preconditioner: Literal["none", "dp_kfac"] = Field("dp_kfac", description="always dp_kfac")

    @field_validator("preconditioner")
    @classmethod
    def _is_kfac(cls, name: str) -> str:
        if name != "dp_kfac":
            raise ValueError("dp_kfac trains with its preconditioner; without one use data_parallel")
        return name

    def preconditioner_settings(self) -> KFACSettings:
        """Return the preconditioner's settings among those of the run."""
        if self.preconditioning:
            raise ValueError(
                "dp_kfac has the preconditioner's settings itself: damping instead of preconditioning.damping"
            )
        return KFACSettings.model_validate({name: getattr(self, name) for name in KFACSettings.model_fields})
