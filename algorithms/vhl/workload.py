"""The workload ``vhl``: federated image classification with FedAvg, FedProx, SCAFFOLD or FedNova, and virtual data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from ...core.exports import Format, TrainedModel
from ...core.seeds import Seed
from ...engines.federated.workload import FederatedWorkload
from .config import VHL

if TYPE_CHECKING:
    from ...engines.federated.assets import Assets
    from ...engines.federated.task import Task
    from ...models.flat_params import FlatModel
    from .task import VHLTask


class VHLWorkload(FederatedWorkload[VHL]):
    """Federated learning on heterogeneous clients, with or without virtual data.

    torch is imported when a program starts, not with this module. See ``docs/methods/vhl.md``.
    """

    name = "vhl"
    summary = "federated learning on heterogeneous clients with virtual data: FedAvg, FedProx, SCAFFOLD, FedNova"
    config: type[BaseModel] = VHL

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """The image data set; none for ``digits``, which scikit-learn provides."""
        settings = cast(VHL, config)
        return () if settings.dataset == "digits" else ((settings.dataset,),)

    def node_packages(self, config: BaseModel) -> Sequence[str]:
        """torch, and what reads the image data set."""
        from ...data.images import packages_for

        return ("torch", *packages_for(cast(VHL, config).dataset))

    server_packages = node_packages

    def task(self, config: VHL, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        """The classification task with its training images partitioned among ``population`` clients."""
        from ...data.images import load_images
        from .task import VHLTask

        return VHLTask(config, seed, load_images(config.dataset, find, seed.child("data")), population)

    def assets(self, config: VHL, task: Task) -> Assets | None:
        """The virtual data set; None if the run uses no virtual images."""
        if not config.virtual.has_images:
            return None
        from .distribution import Distribution
        from .task import VHLTask

        return Distribution(cast(VHLTask, task))

    def baseline_model(self, config: VHL, task: Task) -> FlatModel:
        """The model without outputs for virtual classes."""
        return cast("VHLTask", task).plain_model()

    def result(self, config: VHL, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Summary scores of the run, see :func:`~farshore.algorithms.vhl.scores.summary`."""
        from .scores import summary

        return {"rounds": len(history), **summary(history, config.targets)}

    def export(
        self, trained: TrainedModel, find: Callable[[str], Path], path: Path, kind: Format = "onnx"
    ) -> Mapping[str, Any]:
        """Write the model; as ONNX, with the outputs of the natural classes only."""
        if kind != "onnx":
            return super().export(trained, find, path, kind)
        from .export import export_state

        task = self.task(cast(VHL, trained.config), trained.seed, find, trained.clients)
        return export_state(cast("VHLTask", task), trained.state, path)


WORKLOAD = VHLWorkload()
