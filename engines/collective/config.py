"""Settings that every collective run has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CollectiveConfig(BaseModel):
    """How ranks are formed out of nodes, and when they are safe."""

    model_config = ConfigDict(extra="forbid")

    transport: Literal["auto", "star", "peers"] = Field(
        "auto", description="star: through the server; peers: node to node (gloo); auto: peers where every node may"
    )
    least: int = Field(1, ge=1, description="fewer ranks than this and the run waits for nodes to come back")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints, where ranks may change")
    threads: int = Field(1, ge=0, description="of torch, on every node; 0: as many as torch likes")
