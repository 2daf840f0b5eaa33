"""Data-parallel training on nodes; heavy imports happen when a program starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel

from ...core.message import Message
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .baseline import baselines
from .config import DataParallel

if TYPE_CHECKING:
    from .training import Make


class DataParallelWorkload:
    """DistributedDataParallel whose ranks are nodes; a lost one is done without."""

    name = "data_parallel"
    summary = "train one image classifier on many nodes: DistributedDataParallel, gradients compressed if you like"
    config: type[BaseModel] = DataParallel
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """The images, unless they come as a package."""
        settings = cast(DataParallel, config)
        return () if settings.dataset == "digits" else ((settings.dataset,),)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """What a run will send."""
        from .estimate import plan_run

        return plan_run(cast(DataParallel, config), setting, self.preconditioner)

    def preconditioner(self, config: DataParallel, ranks: int) -> Make | None:
        """What is done to gradients; a method says."""
        return None

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Make ranks of the nodes and serve them; the first rank's model is the result."""
        from ..collective.coordinator import Coordinator

        settings = cast(DataParallel, config)
        latest: dict[str, float] = {}

        def told(node: str, message: Message) -> None:
            values = {k: float(v) for k, v in message.fields.items() if isinstance(v, float)}
            latest.update(values)
            session.metrics(message.step, **values)
            if (total := message.fields.get("total")) is not None:
                session.progress(message.step, int(total), **values)

        conductor = Coordinator(session, transport=settings.transport, least=settings.least, on_told=told)
        final, words = conductor.run()
        _save(session, final)
        first = next((told for told in words.values() if "accuracy" in told), {})
        told_last = {k: v for k, v in first.items() if isinstance(v, int | float)}
        steps, numbers = int(told_last.get("steps", 0)), int(told_last.get("parameters", 0))
        plain = baselines(conductor.formations, steps, numbers)
        return {**latest, **told_last, "ranks": len(words), "baselines": plain}

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train as a rank, and as another one when the ranks change."""
        import torch

        from ...data.images import load_images
        from ..collective.elastic_groups import elastic_groups

        settings = cast(DataParallel, config)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        task = load_images(settings.dataset, session.data, session.run.seed.child("data"))
        from .loop import train
        from .training import Training

        for world in elastic_groups(session, session.peer_interface):
            with world:
                make = self.preconditioner(settings, world.size)
                training = Training(settings, task, session.run.seed, world.rank, world.size, make)
                train(training, world, settings)


def _save(session: ServerSession, final: Mapping[str, Any]) -> None:
    from ...runs.model_states import save_state

    if final:
        arrays = {name: tensor.array for name, tensor in final.items()}
        save_state(session.run.directory / "states" / "last.safetensors", arrays, {"run": session.run.id})


WORKLOAD = DataParallelWorkload()
