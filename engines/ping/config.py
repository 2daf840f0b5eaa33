"""Settings of a ping run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PingConfig(BaseModel):
    """Configuration of ``farshore run ping``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(10, ge=1, le=1_000_000, description="round trips per node")
    kilobytes: int = Field(1024, ge=0, le=1 << 18, description="size of the block that each node echoes, KiB")
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints")
    pause_ms: float = Field(0.0, ge=0, description="pause between rounds, ms")
