"""Workload ``split_fine_tuning``: entry points of its programs; imports torch only when one of them runs."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Setting, TrafficPlan
from .config import SplitFineTuning


class SplitFineTuningWorkload:
    """Fine-tunes a transformer split into a front on each edge and one trunk in the cloud."""

    name = "split_fine_tuning"
    summary = "fine-tune a transformer split between edges and cloud; low-rank codes replace activations on the wire"
    config: type[BaseModel] = SplitFineTuning
    on_lost_node: Literal["restart", "continue"] = "restart"
    uses_torch = True

    def node_data(self, config: BaseModel) -> tuple[tuple[str, ...], ...]:
        """Return the data sets that a node needs: the task's sentences and, unless packaged, the model."""
        from ...data.registry import task

        settings = cast(SplitFineTuning, config)
        sentences = task(settings.task).data_names
        model = () if settings.model == "minilm" else (settings.model,)
        return tuple(names for names in (sentences, model) if names)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """Plan the traffic of a run; see :class:`~farshore.core.traffic_plan.Plans`."""
        from .estimate import plan_run

        return plan_run(cast(SplitFineTuning, config), setting)

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Train the trunk; return the score, the loss and the traffic of the baselines."""
        from .cloud_program import CloudProgram

        return CloudProgram(session, cast(SplitFineTuning, config)).run()

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train the front of this edge."""
        from .edge_program import EdgeProgram

        EdgeProgram(session, cast(SplitFineTuning, config)).run()


WORKLOAD = SplitFineTuningWorkload()
