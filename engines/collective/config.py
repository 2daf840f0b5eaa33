"""Settings that all collective runs share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CollectiveConfig(BaseModel):
    """How nodes form a group of ranks, and how often they save checkpoints."""

    model_config = ConfigDict(extra="forbid")

    transport: Literal["auto", "star", "peers"] = Field(
        "auto", description="star: through the server; peers: node to node (gloo); auto: peers if every node allows it"
    )
    least: int = Field(1, ge=1, description="minimum number of ranks; with fewer the run waits for nodes to rejoin")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints; nodes can rejoin at a checkpoint")
    threads: int = Field(1, ge=0, description="torch threads per node; 0: torch's default")
