"""The ``data_parallel`` workload: training of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from ...core.seeds import Seed
from .image_config import DataParallelConfig
from .workload import FindData, TrainingWorkload

if TYPE_CHECKING:
    from .image_task import ImageClassification


class DataParallelWorkload(TrainingWorkload[DataParallelConfig]):
    """DistributedDataParallel whose ranks are nodes."""

    name = "data_parallel"
    summary = "train an image classifier on several nodes: DistributedDataParallel, with optional gradient compression"
    config: type[BaseModel] = DataParallelConfig

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the image data set, unless it is part of an installed package."""
        settings = cast(DataParallelConfig, config)
        return () if settings.dataset == "digits" else ((settings.dataset,),)

    def node_packages(self, config: BaseModel) -> Sequence[str]:
        """Return torch, and what reads the image data set."""
        from ...data.images import packages_for

        return ("torch", *packages_for(cast(DataParallelConfig, config).dataset))

    def task(self, config: DataParallelConfig, seed: Seed, find: FindData) -> ImageClassification:
        """Return the task of one rank."""
        from ...data.images import load_images
        from .image_task import ImageClassification

        return ImageClassification(config, load_images(config.dataset, find, seed.child("data")), seed)


WORKLOAD = DataParallelWorkload()
