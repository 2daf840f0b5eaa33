"""The base class of training methods: both programs, for any task; torch is imported when a program starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast

from pydantic import BaseModel

from ...core.exports import Format, TrainedModel
from ...core.seeds import Seed
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .config import TrainingConfig

if TYPE_CHECKING:
    from .task import TrainTask

Config = TypeVar("Config", bound=TrainingConfig)

#: Returns the path of a data set by name; raises DataError if it was not given.
FindData: TypeAlias = Callable[[str], Path]


class TrainingWorkload(ABC, Generic[Config]):
    """A method whose nodes train one model as the ranks of a process group; it continues without a lost node.

    A method names itself, sets :attr:`config` and returns its task.
    """

    name: str
    summary: str
    config: type[BaseModel] = TrainingConfig
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    @abstractmethod
    def task(self, config: Config, seed: Seed, find: FindData) -> TrainTask[Any]:
        """Return the task of one rank, the same on all ranks but for the batches that it returns.

        It is called by :meth:`make_task`, with torch's global generators seeded: weights need no seed of their own.

        Parameters
        ----------
        config : TrainingConfig
            An instance of :attr:`config`.
        seed : Seed
            Of the run.
        find : callable
        """

    def make_task(self, config: Config, seed: Seed, find: FindData) -> TrainTask[Any]:
        """Return :meth:`task` with weights drawn from the run's seed; torch's global generators are as before."""
        import torch

        from ...models.devices import seeded_generators

        with seeded_generators(torch.device("cpu"), seed.child("task").value):
            return self.task(config, seed, find)

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the data sets that each node must hold; none here."""
        return ()

    def least_nodes(self, config: Config) -> int:
        """Return the fewest ranks that train."""
        return config.least

    #: Formats of :meth:`export`.
    exports: Sequence[Format] = ("onnx", "safetensors")

    def export(self, trained: TrainedModel, find: FindData, path: Path, kind: Format = "onnx") -> Mapping[str, Any]:
        """Write a saved state of the model; see :class:`~farshore.core.exports.SupportsExport`.

        As ONNX, the model takes the first tensor of a batch.
        """
        from ...models.state_files import load_into, write_model, write_weights

        if kind == "safetensors":
            return write_weights(trained.state, path)
        task = self.make_task(cast(Config, trained.config), trained.seed, find)
        metadata = load_into(task.model, trained.state)
        return write_model(task.model, task.batch(0, 0, 1), path, metadata)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """Plan the messages of a run."""
        from .estimate import plan_run

        return plan_run(self, cast(Config, config), setting)

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Form the ranks and serve their collectives; save the weights of rank 0."""
        from .server import serve

        return serve(session, cast(Config, config))

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train as a rank of each group that this node joins."""
        import torch

        from ..collective.elastic_groups import elastic_groups
        from .loop import train
        from .training import Training

        settings = cast(Config, config)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        # Its data are read before this node is ready for a group, so that no rank waits for them.
        task: TrainTask[Any] | None = self.make_task(settings, session.run.seed, session.data)
        for group in elastic_groups(session, session.peer_interface):
            with group:
                # A new task for each further group: the lost one may have ended in the middle of a step.
                task = task or self.make_task(settings, session.run.seed, session.data)
                training = Training(settings, task, session.run.seed, group.rank, group.size)
                task = None
                train(training, group)
