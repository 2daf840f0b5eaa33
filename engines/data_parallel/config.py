"""Settings of a data-parallel run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ...models.catalog import check_name
from ..collective.config import CollectiveConfig


class DataParallelConfig(CollectiveConfig):
    """Configuration of ``data_parallel``."""

    dataset: str = Field("digits", description="digits, mnist, fmnist, cifar10, cifar100, svhn, or a data set's name")
    model: str = Field(
        "resnet20",
        description="mlp; resnet20, 32, 44, 56 or 110, for small images; resnet10, 18 or 50, wide; torchvision:NAME",
    )
    train_samples: int = Field(0, ge=0, description="use only the first N training images; 0: all")
    steps: int = Field(0, ge=0, description="training steps; 0: given by epochs")
    epochs: int = Field(1, ge=1)
    batch: int = Field(32, ge=1, description="images per step and rank")
    lr: float = Field(0.1, gt=0)
    warmup: int = Field(0, ge=0, description="steps of linear warm-up of the learning rate")
    schedule: Literal["constant", "cosine"] = "cosine"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    augment: bool = Field(False, description="random crops and horizontal flips, as usual for CIFAR")
    compression: Literal["none", "fp16", "powersgd"] = Field(
        "none", description="gradient compression by torch's DDP communication hooks"
    )
    powersgd_rank: int = Field(2, ge=1)
    powersgd_start: int = Field(10, ge=2, description="uncompressed steps before PowerSGD starts")
    eval_every: int = Field(0, ge=0, description="steps between evaluations on the test set; 0: at the end only")
    log_every: int = Field(10, ge=1, description="steps between metrics")

    @field_validator("model")
    @classmethod
    def _exists(cls, name: str) -> str:
        check_name(name)
        return name
