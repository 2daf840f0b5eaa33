"""Settings of a training run, whatever it trains."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ...core.devices import ComputeSettings
from ..collective.config import CollectiveConfig
from .preconditioner import PreconditionerSettings, load_settings


class TrainingConfig(CollectiveConfig, ComputeSettings):
    """What the engine needs to know; the configurations of methods extend it."""

    steps: int = Field(0, ge=0, description="training steps; 0: given by epochs")
    epochs: int = Field(1, ge=1)
    batch: int = Field(32, ge=1, description="samples per batch and rank")
    accumulate: int = Field(1, ge=1, description="batches per step, whose gradients are averaged")
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate; with one_cycle the highest")
    schedule: Literal["constant", "cosine", "step", "polynomial", "one_cycle"] = "cosine"
    warmup: int = Field(0, ge=0, description="steps of linear warm-up of the learning rate")
    lr_min: float = Field(0.0, ge=0, description="cosine, polynomial: learning rate at the end")
    lr_drops: tuple[float, ...] = Field(
        (0.5, 0.75), description="step: shares of the run after which the learning rate is multiplied by lr_gamma"
    )
    lr_gamma: float = Field(0.1, gt=0, description="step: factor at each of lr_drops")
    lr_power: float = Field(0.9, gt=0, description="polynomial: the exponent")
    cycle_peak: float = Field(0.3, gt=0, lt=1, description="one_cycle: share of the steps up to the peak")
    cycle_start: float = Field(0.04, gt=0, le=1, description="one_cycle: first learning rate as a share of lr")
    cycle_end: float = Field(4e-6, ge=0, le=1, description="one_cycle: last learning rate as a share of lr")
    cycle_momentum: float | None = Field(
        None, ge=0, lt=1, description="one_cycle: momentum, or Adam's first beta, at the peak; null: unchanged"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = False
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    eps: float = Field(1e-8, gt=0, description="of adam and adamw")
    weight_decay: float = Field(5e-4, ge=0)
    clip: float = Field(0.0, ge=0, description="largest norm of a step's gradient; 0: no clipping")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the average of the weights that is evaluated and saved; 0: none"
    )
    ema_warmup: bool = Field(False, description="let the decay of ema rise from 0.1 with the steps")
    compression: Literal["none", "fp16", "powersgd"] = Field(
        "none", description="gradient compression by torch's DDP communication hooks"
    )
    powersgd_rank: int = Field(2, ge=1)
    powersgd_start: int = Field(10, ge=2, description="uncompressed steps before PowerSGD starts")
    preconditioner: Literal["none", "dp_kfac"] = Field("none", description="dp_kfac: distributed K-FAC")
    preconditioning: dict[str, Any] = Field(
        default_factory=dict, description="the preconditioner's settings, for example preconditioning.damping=0.01"
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0: at the end only")
    log_every: int = Field(10, ge=1, description="steps between metrics")
    keep_best: bool = Field(False, description="also save the weights with the best score of all evaluations")
    early_stop: int = Field(0, ge=0, description="end after this many evaluations without a better score; 0: never")

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both are at least 0 and less than 1")
        return betas

    @field_validator("lr_drops")
    @classmethod
    def _check_drops(cls, drops: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < drop < 1 for drop in drops):
            raise ValueError("shares of the run are between 0 and 1")
        return drops

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        if self.schedule == "one_cycle" and self.warmup:
            raise ValueError("schedule one_cycle has a warm-up of its own: cycle_peak instead of warmup")
        if self.early_stop and not self.eval_every:
            raise ValueError("early_stop needs evaluations during the run: set eval_every")
        if self.preconditioner == "none" and self.preconditioning:
            raise ValueError("preconditioning has settings, but preconditioner is none")
        if (settings := self.preconditioner_settings()) is not None:
            settings.check_scheme()
            if self.compression != "none":
                raise ValueError(
                    f"{self.preconditioner} does not support compression: it uses DDP's communication hook itself"
                )
        return self

    @property
    def tracks_score(self) -> bool:
        """Whether evaluations are compared with earlier ones."""
        return self.keep_best or self.early_stop > 0

    def preconditioner_settings(self) -> PreconditionerSettings | None:
        """Return the validated settings of the preconditioner; None without one.

        Raises
        ------
        ValueError
            A setting is unknown or invalid.
        """
        if self.preconditioner == "none":
            return None
        model = load_settings(self.preconditioner)
        try:
            return model.model_validate(self.preconditioning)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            known = (
                f"; settings are {', '.join(sorted(model.model_fields))}" if first["type"] == "extra_forbidden" else ""
            )
            raise ValueError(f"preconditioning.{name}: {first['msg']}{known}") from None
