"""Settings of every work queue."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WorkQueueConfig(BaseModel):
    """How items are dealt; the configurations of methods extend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: int = Field(1, ge=0, le=1024, description="items that a node works on at a time; 0: one per core")
    tries: int = Field(2, ge=1, le=100, description="times that an item may fail, on different nodes if possible")
    straggler: float = Field(
        2.0, ge=0, description="deal an item twice once it takes this many times its usual time, near the end; 0: never"
    )
