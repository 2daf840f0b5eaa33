"""Settings of image classification."""

from __future__ import annotations

from pydantic import Field, field_validator

from ...models.catalog import check_name
from .config import TrainingConfig


class DataParallelConfig(TrainingConfig):
    """Configuration of ``data_parallel``."""

    dataset: str = Field("digits", description="digits, mnist, fmnist, cifar10, cifar100, svhn, or a data set's name")
    model: str = Field(
        "resnet20",
        description="mlp; resnet20, 32, 44, 56 or 110, for small images; resnet10, 18 or 50, wide; torchvision:NAME",
    )
    train_samples: int = Field(0, ge=0, description="use only the first N training images; 0: all")
    augment: bool = Field(False, description="random crops and horizontal flips, as usual for CIFAR")

    @field_validator("model")
    @classmethod
    def _exists(cls, name: str) -> str:
        check_name(name)
        return name
