"""The ``data_parallel`` workload: its server program and node program; torch is imported when a program starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel

from ...core.message import Message
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .baseline import baselines
from .config import DataParallelConfig
from .protocol import Figures, Trained

if TYPE_CHECKING:
    from .training import PreconditionerFactory


class DataParallelWorkload:
    """DistributedDataParallel whose ranks are nodes; the run continues without a lost node."""

    name = "data_parallel"
    summary = "train an image classifier on several nodes: DistributedDataParallel, with optional gradient compression"
    config: type[BaseModel] = DataParallelConfig
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the image data set, unless it is part of an installed package."""
        settings = cast(DataParallelConfig, config)
        return () if settings.dataset == "digits" else ((settings.dataset,),)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """Plan the messages of a run."""
        from .estimate import plan_run

        return plan_run(cast(DataParallelConfig, config), setting, self.preconditioner_factory)

    def preconditioner_factory(self, config: DataParallelConfig, ranks: int) -> PreconditionerFactory | None:
        """Return what makes the preconditioner; None here, overridden by methods."""
        return None

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Form the ranks and serve their collectives; save the model of rank 0."""
        from ..collective.coordinator import Coordinator

        settings = cast(DataParallelConfig, config)
        latest: dict[str, float] = {}

        def record_metrics(node: str, message: Message) -> None:
            fields = Figures.read(message, f"node {node}").values
            values = {k: float(v) for k, v in fields.items() if isinstance(v, float)}
            latest.update(values)
            session.metrics(message.step, **values)
            if (total := fields.get("total")) is not None:
                session.progress(message.step, int(total), **values)

        coordinator = Coordinator(
            session, Trained, transport=settings.transport, min_ranks=settings.least, on_message=record_metrics
        )
        final, results = coordinator.run()
        _save(session, final)
        rank_0 = next((end.values for end in results.values() if "accuracy" in end.values), {})
        scores = {k: v for k, v in rank_0.items() if isinstance(v, int | float)}
        steps, parameters = int(scores.get("steps", 0)), int(scores.get("parameters", 0))
        plain = baselines(coordinator.formations, steps, parameters)
        return {**latest, **scores, "ranks": len(results), "baselines": plain}

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train as a rank of each group that this node joins."""
        import torch

        from ...data.images import load_images
        from ..collective.elastic_groups import elastic_groups

        settings = cast(DataParallelConfig, config)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        task = load_images(settings.dataset, session.data, session.run.seed.child("data"))
        from .loop import train
        from .training import Training

        for group in elastic_groups(session, session.peer_interface):
            with group:
                factory = self.preconditioner_factory(settings, group.size)
                training = Training(settings, task, session.run.seed, group.rank, group.size, factory)
                train(training, group, settings)


def _save(session: ServerSession, final: Mapping[str, Any]) -> None:
    from ...runs.model_states import save_state

    if final:
        arrays = {name: tensor.array for name, tensor in final.items()}
        save_state(session.run.directory / "states" / "last.safetensors", arrays, {"run": session.run.id})


WORKLOAD = DataParallelWorkload()
