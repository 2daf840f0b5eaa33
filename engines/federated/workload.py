"""A federated method as a workload: from a task to the two programs that real nodes and servers run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
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
    """The programs of a federated run; a method gives the functions below.

    Rounds go on with whoever is left, so a lost node restarts nothing but its own program. Heavy imports happen when a
    program starts.
    """

    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    @abstractmethod
    def task(self, config: Config, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        """The learning problem of ``population`` clients; ``find`` gives a data set's path by name."""

    def codec(self, config: Config, flat: FlatModel) -> UpdateCodec:
        """How states and updates of a model like this travel; both ends have the same."""
        from .codec import UpdateCodec

        return UpdateCodec(config.uplink, config.downlink, flat.layout)

    def briefing(self, config: Config, task: Task, folder: Path, who: str) -> Assets | None:
        """What clients must hold before their first round; nothing unless a method says otherwise.

        ``folder`` is the program's own, and ``who`` names it in errors.
        """
        return None

    def result(self, config: Config, history: list[dict[str, Any]]) -> dict[str, Any]:
        """What the run tells at its end: the last round's figures unless a method says otherwise."""
        return {"rounds": len(history), **{n: v for n, v in history[-1].items() if isinstance(v, float)}}

    def plain(self, config: Config, task: Task) -> FlatModel:
        """The model that FedAvg alone would train, to compare bytes with; the task's own unless a method differs."""
        return task.model()

    def outcome(self, config: Config, task: Task, history: list[dict[str, Any]]) -> dict[str, Any]:
        """:meth:`result`, and the bytes that reports compare with."""
        from .baseline import baselines, messages

        return {**self.result(config, history), "baselines": baselines(self.plain(config, task), *messages(history))}

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Data sets that each node must hold; none unless a method says otherwise."""
        return ()

    def plan(self, config: Config, setting: Setting) -> TrafficPlan:
        """What a run will send; see :class:`~farshore.core.traffic_plan.Plans`.

        Raises
        ------
        ConfigError
            The schedule is not ``sync``, cohorts are larger than the population, or something was assumed.
        DataError
            A data set is not there.
        """
        from .baseline import baselines
        from .estimate import RoundsPlan

        if setting.assumed:
            raise ConfigError("an estimate of federated rounds assumes nothing", hint="leave --assume out")
        use_threads(config.threads)
        task = self.task(config, setting.seed, setting.find, len(setting.nodes))
        briefing = self.briefing(config, task, Path(), "the estimate")
        plan = RoundsPlan(config, setting, task, self.codec(config, task.model()), briefing).plan()
        trips = config.rounds * config.per_round
        return replace(plan, baselines=baselines(self.plain(config, task), trips, trips))

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Run the rounds; returns :meth:`result`."""
        from .asynchronous import rounds_of
        from .node_pool import NodePool

        settings = cast(Config, config)
        use_threads(settings.threads)
        task = self.task(settings, session.run.seed, session.data, len(session.channels))
        for note in task.notes:
            session.log(note)
        briefing = self.briefing(settings, task, session.run.directory / "briefing", "the server")
        fleet = NodePool(
            session,
            self.codec(settings, task.model()),
            briefing,
            least=settings.least,
            deadline=settings.deadline,
            largest_norm=settings.largest_norm,
        )
        history = rounds_of(session, task, fleet, settings).run()
        fleet.done()
        return self.outcome(settings, task, history)

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Be one client."""
        from .client import Client

        settings = cast(Config, config)
        use_threads(settings.threads)
        task = self.task(settings, session.run.seed, session.data, session.shard[1])
        folder = session.run.directory / "briefing" / session.node
        briefing = self.briefing(settings, task, folder, f"node {session.node}")
        Client(session, task, self.codec(settings, task.model()), briefing).run()


def use_threads(count: int) -> None:
    """Compute with so many threads; 0 = as many as there are cores."""
    import os

    import torch

    torch.set_num_threads(count or os.cpu_count() or 1)
