"""VHL and its base methods as a workload; heavy imports happen when a program starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from ...core.exports import TrainedModel
from ...core.seeds import Seed
from ...engines.federated.workload import FederatedWorkload
from .config import VHL

if TYPE_CHECKING:
    from ...engines.federated.assets import Assets
    from ...engines.federated.task import Task
    from ...models.flat_params import FlatModel
    from .task import VHLTask


class VHLWorkload(FederatedWorkload[VHL]):
    """Federated learning on unlike clients: FedAvg, FedProx, SCAFFOLD, FedNova, with virtual data or without."""

    name = "vhl"
    summary = "federated learning with virtual data that make unlike clients alike; FedAvg, FedProx, SCAFFOLD, FedNova"
    config: type[BaseModel] = VHL

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """The images, unless they come as a package."""
        settings = cast(VHL, config)
        return () if settings.dataset == "digits" else ((settings.dataset,),)

    def task(self, config: VHL, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        """Images divided among ``population`` clients."""
        from ...data.images import load_images
        from .task import VHLTask

        return VHLTask(config, seed, load_images(config.dataset, find, seed.child("data")), population)

    def assets(self, config: VHL, task: Task, folder: Path, who: str) -> Assets | None:
        """The virtual data, where there are any."""
        if not config.virtual.has_images:
            return None
        from .distribution import Distribution
        from .task import VHLTask

        return Distribution(cast(VHLTask, task), folder, who)

    def baseline_model(self, config: VHL, task: Task) -> FlatModel:
        """The network without room for virtual classes."""
        return cast("VHLTask", task).plain()

    def result(self, config: VHL, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracies: the last, the best, the mean of the last ten, and each target's first round."""
        from .scores import summary

        return {"rounds": len(history), **summary(history, config.targets)}

    def export(self, trained: TrainedModel, find: Callable[[str], Path], path: Path) -> Mapping[str, Any]:
        """The model as ONNX, with the natural classes' outputs alone."""
        from .export import export_state

        config = cast(VHL, trained.config)
        return export_state(
            cast("VHLTask", self.task(config, trained.seed, find, trained.clients)), trained.state, path
        )


WORKLOAD = VHLWorkload()
