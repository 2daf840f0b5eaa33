"""Settings of federated runs: rounds, asynchronous schedules and encodings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.devices import ComputeSettings

#: Defaults of topk's ``fraction`` and lowrank's ``rank``.
FRACTION, RANK = 0.01, 4


class Asynchrony(BaseModel):
    """Settings of the asynchronous schedules FedAsync (Xie 2019) and FedBuff (Nguyen 2022)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(0, ge=0, description="clients that train at the same time, M; 0 = per_round")
    buffer: int = Field(0, ge=0, description="FedBuff: replies per version, K; 0 = per_round")
    server_lr: float = Field(1.0, gt=0, description="FedBuff: server learning rate, eta_g")
    alpha: float = Field(0.6, gt=0, le=1, description="FedAsync: weight of an up-to-date reply in the next version")
    staleness: Literal["polynomial", "hinge", "constant"] = Field(
        "polynomial", description="how the weight of replies falls with their staleness tau"
    )
    a: float = Field(0.5, gt=0, description="polynomial (1 + tau)^-a, hinge 1 / (a (tau - b) + 1)")
    b: int = Field(4, ge=0, description="hinge: staleness up to which the weight stays 1")


class _ByName(BaseModel):
    """Settings of an encoding, which may be given by name alone: ``int8`` for ``{"encoding": "int8"}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"encoding": value} if isinstance(value, str) else value


class Uplink(_ByName):
    """Encoding of updates; all but raw send the difference to the state that the client received."""

    encoding: Literal["raw", "fp16", "bf16", "int8", "int4", "topk", "lowrank"] = "raw"
    fraction: float | None = Field(
        None, gt=0, le=1, description=f"topk: fraction of the values that is sent; default {FRACTION:g}"
    )
    rank: int | None = Field(None, ge=1, le=0xFFFF, description=f"lowrank: rank of each weight matrix; default {RANK}")
    values: Literal["raw", "fp16", "bf16", "int8"] = Field("raw", description="topk, lowrank: encoding of the values")
    error_feedback: bool | None = Field(
        None, description="add the encoding error of earlier updates to the next one; default: with topk and lowrank"
    )

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        for name, owners in {"fraction": ("topk",), "rank": ("lowrank",), "values": ("topk", "lowrank")}.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.encoding not in owners:
                raise ValueError(
                    f"'{name}' applies to encoding {' or '.join(owners)}, not to {self.encoding}: "
                    f"set encoding to {' or '.join(owners)}, or remove '{name}'"
                )
        return self

    @property
    def uses_error_feedback(self) -> bool:
        """Whether clients keep the encoding errors of their updates."""
        if self.encoding == "raw":
            return False
        return self.encoding in ("topk", "lowrank") if self.error_feedback is None else self.error_feedback


class Downlink(_ByName):
    """Encoding of the state."""

    encoding: Literal["raw", "fp16", "bf16", "int8"] = "raw"


class FederatedConfig(ComputeSettings):
    """Settings of the rounds; workloads extend it with their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(40, ge=1, description="number of rounds; with an asynchronous schedule, of model versions")
    schedule: Literal["sync", "fedasync", "fedbuff"] = Field(
        "sync", description="sync: rounds wait for their cohort; fedasync, fedbuff: asynchronous"
    )
    asynchrony: Asynchrony = Asynchrony()
    per_round: int = Field(5, ge=1, description="clients per cohort, S")
    least: int = Field(1, ge=1, description="a round with fewer replies leaves the model unchanged")
    deadline: float = Field(0.0, ge=0, description="seconds that a round waits for replies; 0 = no limit")
    largest_norm: float = Field(0.0, ge=0, description="reject updates with a larger norm; 0 = no limit")
    eval_every: int = Field(1, ge=1, description="rounds between evaluations on the test set")
    client_eval_every: int = Field(
        0,
        ge=0,
        description="rounds between evaluations on each client's own part of the test set, always "
        "after the last round; 0 = never",
    )
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints")
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    execution: Literal["sequential", "batched", "auto"] = Field(
        "sequential",
        description="how simulations train: one client at a time, several small models as a batch (equal up to "
        "rounding), or whichever is measured to be faster",
    )
    threads: int = Field(
        1, ge=0, description="compute threads per program; 0 = all cores; bit-identical runs need equal values"
    )

    @property
    def requires_seeded_cohorts(self) -> bool:
        """Whether cohorts must depend on seed and round alone, because clients recompute earlier cohorts."""
        return False
