"""Split fine-tuning as a workload: what the table of methods points at. Heavy imports happen when a program starts."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .config import SplitFineTuning


class SplitFineTuningWorkload:
    """Fine-tune a transformer whose front lives on the edges and whose trunk lives in the cloud."""

    name = "split_fine_tuning"
    summary = "fine-tune a transformer across edges and cloud, low-rank codes instead of activations on the wire"
    config: type[BaseModel] = SplitFineTuning
    on_lost_node: Literal["restart", "continue"] = "restart"
    uses_torch = True

    def node_data(self, config: BaseModel) -> tuple[tuple[str, ...], ...]:
        """The task's sentences and, unless it comes as a package, the model."""
        from ...data.registry import task

        settings = cast(SplitFineTuning, config)
        sentences = task(settings.task).data_names
        model = () if settings.model == "minilm" else (settings.model,)
        return tuple(names for names in (sentences, model) if names)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """What a run will send; see :class:`~farshore.core.traffic_plan.Plans`."""
        from .estimate import plan_run

        return plan_run(cast(SplitFineTuning, config), setting)

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Train the trunk; returns accuracy, loss and the baselines of the volume."""
        from .cloud_program import CloudProgram

        return CloudProgram(session, cast(SplitFineTuning, config)).run()

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train this edge's front."""
        from .edge_program import EdgeProgram

        EdgeProgram(session, cast(SplitFineTuning, config)).run()


WORKLOAD = SplitFineTuningWorkload()
