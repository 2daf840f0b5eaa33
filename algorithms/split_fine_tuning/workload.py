"""Workload ``split_fine_tuning``: entry points of its programs; imports torch only when one of them runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
from ...core.exports import Format, TrainedModel
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

    def node_packages(self, config: BaseModel) -> tuple[str, ...]:
        """Return the packages that a node's program imports, and that of the model."""
        from .model_folder import PACKAGED

        model = cast(SplitFineTuning, config).model
        return ("torch", "transformers", *((PACKAGED[model][0],) if model in PACKAGED else ()))

    def server_packages(self, config: BaseModel) -> tuple[str, ...]:
        """Return the packages that the server's program imports: the same, and one that computes the score."""
        return (*self.node_packages(config), "sklearn")

    def check(self, config: BaseModel, find: Callable[[str], Path]) -> None:
        """Check the settings that depend on the model, if the server has it; see :class:`.session.ChecksConfig`."""
        from ...data.registry import task
        from .model_folder import PACKAGED, blocks_and_width, model_folder

        settings = cast(SplitFineTuning, config)
        task(settings.task)
        folder = model_folder(settings.model if settings.model in PACKAGED else find(settings.model))
        blocks, width = blocks_and_width(folder)
        if blocks is not None:
            settings.block_of(blocks)
        if width is not None and settings.cut in ("ffn_svd", "codec") and settings.rank > width:
            raise ConfigError(f"rank={settings.rank} exceeds the model's width of {width}", hint=f"use at most {width}")

    #: Formats of :meth:`export`.
    exports: tuple[Format, ...] = ("hf", "onnx", "safetensors")

    def export(
        self, trained: TrainedModel, find: Callable[[str], Path], path: Path, kind: Format = "onnx"
    ) -> Mapping[str, Any]:
        """Join the edges' fronts and the cloud's trunk to one plain model; see :mod:`.merge`."""
        from .export import export

        return export(trained, find, path, kind)

    def plan(self, config: BaseModel, setting: Setting) -> TrafficPlan:
        """Plan the traffic of a run; see :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`."""
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
