"""Base class of federated workloads: the server program and the node program of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
from ...core.exports import Format, TrainedModel
from ...core.seeds import Seed
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .config import FederatedConfig

if TYPE_CHECKING:
    from ...models.flat_params import FlatModel
    from .assets import Assets
    from .codec import UpdateCodec
    from .task import Task

Config = TypeVar("Config", bound=FederatedConfig)


class FederatedWorkload(ABC, Generic[Config]):
    """The programs of a federated run; a method implements :meth:`task` and may override the other hooks.

    Rounds continue with the remaining nodes, so the loss of a node restarts only that node's program. Heavy imports
    happen when a program starts.
    """

    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    #: Formats of :meth:`export`.
    exports: Sequence[Format] = ("onnx", "safetensors")

    def export(
        self, trained: TrainedModel, find: Callable[[str], Path], path: Path, kind: Format = "onnx"
    ) -> Mapping[str, Any]:
        """Write a saved state of the model; see :class:`~farshore.core.exports.SupportsExport`.

        As ONNX, the model takes the first tensor of a client's batch.
        """
        from ...models.state_files import load_into, write_model, write_weights

        if kind == "safetensors":
            return write_weights(trained.state, path)
        task = self.task(cast(Config, trained.config), trained.seed, find, trained.clients)
        flat = task.model()
        metadata = load_into(flat.module, trained.state)
        batches = (b for client in range(trained.clients) for b in task.work(flat, client, 1).batches)
        return write_model(flat.module, next(batches, None), path, metadata)

    @abstractmethod
    def task(self, config: Config, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        """Create the learning problem of ``population`` clients; ``find`` returns a data set's path by name."""

    def codec(self, config: Config, flat: FlatModel) -> UpdateCodec:
        """Create the codec for states and updates of a model of this layout; server and nodes use the same one."""
        from .codec import UpdateCodec

        return UpdateCodec(config.uplink, config.downlink, flat.layout)

    def assets(self, config: Config, task: Task) -> Assets | None:
        """Create the assets that clients need before their first round; by default there are none."""
        return None

    def result(self, config: Config, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the run's result from its history; by default the last round's metrics."""
        return {"rounds": len(history), **{n: v for n, v in history[-1].items() if isinstance(v, float)}}

    def baseline_model(self, config: Config, task: Task) -> FlatModel:
        """Return the model that plain FedAvg would train, for the baseline of bytes; by default the task's model."""
        return task.model()

    def outcome(self, config: Config, task: Task, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Return :meth:`result` with who was left out and why, and the bytes of the baselines for reports."""
        from .baseline import baselines, count_messages
        from .left_out import summary

        plain = self.baseline_model(config, task)
        left_out = summary(history)
        found = {**self.result(config, history), **({"left_out": left_out} if left_out else {})}
        return {**found, "baselines": baselines(plain, *count_messages(history))}

    def least_nodes(self, config: Config) -> int:
        """Return the clients of a round."""
        return config.per_round

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the names of the data sets that each node needs; by default none."""
        return ()

    def plan(self, config: Config, setting: Setting) -> TrafficPlan:
        """Plan the traffic of a run; see :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`.

        Raises
        ------
        ConfigError
            The schedule is not ``sync``, cohorts are larger than the population, or assumptions are given.
        DataError
            A data set is not available.
        """
        from .baseline import baselines
        from .estimate import RoundsPlan

        if setting.assumed:
            raise ConfigError("an estimate of federated rounds takes no assumptions", hint="remove --assume")
        use_threads(config.threads)
        task = self.task(config, setting.seed, setting.find, len(setting.nodes))
        assets = self.assets(config, task)
        plan = RoundsPlan(config, setting, task, self.codec(config, task.model()), assets).plan()
        count = config.rounds * config.per_round
        return replace(plan, baselines=baselines(self.baseline_model(config, task), count, count))

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Run the rounds on the server; return :meth:`outcome`."""
        from .asynchronous import create_rounds
        from .node_pool import NodePool

        settings = cast(Config, config)
        use_threads(settings.threads)
        task = self.task(settings, session.run.seed, session.data, len(session.channels))
        for note in task.notes:
            session.log(note)
        pool = NodePool(
            session,
            self.codec(settings, task.model()),
            self.assets(settings, task),
            least=settings.least,
            deadline=settings.deadline,
            largest_norm=settings.largest_norm,
        )
        history = create_rounds(session, task, pool, settings).run()
        pool.finish()
        return self.outcome(settings, task, history)

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Run the client of a node."""
        from .client import Client

        settings = cast(Config, config)
        use_threads(settings.threads)
        task = self.task(settings, session.run.seed, session.data, session.shard[1])
        codec, assets = self.codec(settings, task.model()), self.assets(settings, task)
        Client(session, task, codec, assets, settings).run()


def use_threads(count: int) -> None:
    """Set the number of compute threads of torch; 0 = all cores."""
    import os

    import torch

    torch.set_num_threads(count or os.cpu_count() or 1)
