"""What every federated run can be told."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: What topk and lowrank send unless they are told.
FRACTION, RANK = 0.01, 4


class Asynchrony(BaseModel):
    """Settings of the schedules that do not wait: FedAsync (Xie 2019) and FedBuff (Nguyen 2022)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(0, ge=0, description="clients that train at a time, M; 0 = per_round")
    buffer: int = Field(0, ge=0, description="FedBuff: replies that make a version, K; 0 = per_round")
    server_lr: float = Field(1.0, gt=0, description="FedBuff: eta_g")
    alpha: float = Field(0.6, gt=0, le=1, description="FedAsync: share of a fresh reply in the next version")
    staleness: Literal["polynomial", "hinge", "constant"] = Field("polynomial", description="how old replies weigh")
    a: float = Field(0.5, gt=0, description="polynomial (1 + tau)^-a, hinge 1 / (a (tau - b) + 1)")
    b: int = Field(4, ge=0, description="hinge: versions that cost nothing")


class _ByName(BaseModel):
    """Settings of an encoding; its name alone stands for them: ``int8`` for ``{"encoding": "int8"}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"encoding": value} if isinstance(value, str) else value


class Uplink(_ByName):
    """How updates travel; all but raw send the difference to the state that came down."""

    encoding: Literal["raw", "fp16", "bf16", "int8", "int4", "topk", "lowrank"] = "raw"
    fraction: float | None = Field(
        None, gt=0, le=1, description=f"of the numbers that topk sends; by default {FRACTION:g}"
    )
    rank: int | None = Field(
        None, ge=1, le=0xFFFF, description=f"of each weight matrix that lowrank sends; by default {RANK}"
    )
    values: Literal["raw", "fp16", "bf16", "int8"] = Field("raw", description="how the numbers of topk and lowrank go")
    error_feedback: bool | None = Field(
        None, description="clients add to an update what earlier ones lost; by default with topk and lowrank"
    )

    @model_validator(mode="after")
    def _all_act(self) -> Self:
        for name, owners in {"fraction": ("topk",), "rank": ("lowrank",), "values": ("topk", "lowrank")}.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.encoding not in owners:
                raise ValueError(
                    f"'{name}' belongs to the encoding {' or '.join(owners)}, not to {self.encoding}: "
                    f"set encoding to {' or '.join(owners)}, or leave '{name}' out"
                )
        return self

    @property
    def feeds_back(self) -> bool:
        """Whether clients remember what their updates lost."""
        if self.encoding == "raw":
            return False
        return self.encoding in ("topk", "lowrank") if self.error_feedback is None else self.error_feedback


class Downlink(_ByName):
    """How the state travels."""

    encoding: Literal["raw", "fp16", "bf16", "int8"] = "raw"


class FederatedConfig(BaseModel):
    """Settings of the rounds; a method's own configuration adds to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(40, ge=1, description="versions of the model, where the schedule is not sync")
    schedule: Literal["sync", "fedasync", "fedbuff"] = Field("sync", description="who waits for whom")
    asynchrony: Asynchrony = Asynchrony()
    per_round: int = Field(5, ge=1, description="clients of a cohort, S")
    least: int = Field(1, ge=1, description="a round with fewer replies leaves the model as it was")
    deadline: float = Field(0.0, ge=0, description="seconds that a round waits for replies; 0 = for all that live")
    largest_norm: float = Field(0.0, ge=0, description="updates that move the model further are refused; 0 = none is")
    eval_every: int = Field(1, ge=1, description="rounds between scores on the test set")
    client_eval_every: int = Field(
        0,
        ge=0,
        description="rounds between scores on each client's own part of the test set, the last round's "
        "always; 0 = never",
    )
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints")
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    execution: Literal["sequential", "batched", "auto"] = Field(
        "sequential",
        description="how simulations compute: client after client, several small models at once (equal up to "
        "rounding), or whichever a probe finds faster",
    )
    threads: int = Field(1, ge=0, description="compute threads of each program; 0 = all cores. Part of 'same bits'.")

    @property
    def counts_cohorts(self) -> bool:
        """Whether clients must be drawn by seed and round alone, as clients work out from these who was drawn when."""
        return False
