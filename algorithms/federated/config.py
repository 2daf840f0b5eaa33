"""What every federated run can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FederatedConfig(BaseModel):
    """Settings of the rounds; a method's own configuration adds to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(40, ge=1)
    per_round: int = Field(5, ge=1, description="clients of a cohort, S")
    least: int = Field(1, ge=1, description="a round with fewer replies leaves the model as it was")
    deadline: float = Field(0.0, ge=0, description="seconds that a round waits for replies; 0 = for all that live")
    largest_norm: float = Field(0.0, ge=0, description="updates that move the model further are refused; 0 = none is")
    eval_every: int = Field(1, ge=1, description="rounds between scores on the test set")
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints")
    threads: int = Field(1, ge=0, description="compute threads of each program; 0 = all cores. Part of 'same bits'.")
