"""The workload ``ccgc``: graph clustering on one node, on rows shared by several, or on a graph of several owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.seeds import Seed
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Rehearsal
from ...data.graphs import data_name
from .config import CCGCConfig

#: Runs up to this many epochs are rehearsed whole.
_WHOLE = 24
#: Epochs of warm-up in the rehearsal of a longer run.
_WARM = 3


class CCGCWorkload:
    """Nodes are the ranks of a group; one alone trains as on one machine.

    torch is imported when a node program starts, not with this module. See ``docs/methods/ccgc.md``.
    """

    name = "ccgc"
    summary = "cluster the nodes of a graph by contrastive learning guided by clusters; also over nodes that share it"
    config: type[BaseModel] = CCGCConfig
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the graph's data set; none for the synthetic graph."""
        name = data_name(cast(CCGCConfig, config).dataset)
        return ((name,),) if name else ()

    def node_packages(self, config: BaseModel) -> Sequence[str]:
        """Return what trains, and what reads the graph."""
        pyg = ("torch_geometric",) if cast(CCGCConfig, config).dataset.startswith("pyg:") else ()
        return ("torch", "scipy", "sklearn", *pyg)

    def server_packages(self, config: BaseModel) -> Sequence[str]:
        """Return what adds up the parts of the ranks."""
        return ("torch",)

    def rehearsal(self, config: CCGCConfig) -> Rehearsal:
        """Let one epoch of each kind stand for all; a short run is rehearsed whole.

        How long K-means takes, and how pairs divide, depends on the epoch: of a long run on several nodes this is an
        approximation.
        """
        steps = range(1, config.epochs + 1)
        if config.epochs <= _WHOLE:
            return Rehearsal(config, "step", {step: [step] for step in steps})
        warm = _WARM if config.warmup else 0
        short = config.model_copy(update={"epochs": 7, "warmup": warm, "kmeans_every": 3, "log_every": 2})
        # Steps of the rehearsal that stand for none are not counted.
        kinds: dict[int, list[int]] = {step: [] for step in range(1, short.epochs + 1)}
        for step in steps:
            kinds[short.epochs if step == config.epochs else _stand_in(config, step)].append(step)
        return Rehearsal(short, "step", kinds)

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Form the ranks and serve their collectives; write the result."""
        from ...engines.collective.coordinator import Coordinator
        from .messages import Finished
        from .server_program import RunRecorder, result_of

        settings = cast(CCGCConfig, config)
        recorder = RunRecorder(session, settings)
        # A party that is lost takes its nodes with it: the others wait for it to return.
        least = len(session.run.nodes) if settings.mode == "parties" else settings.least
        coordinator = Coordinator(
            session, Finished, transport=settings.transport, min_ranks=least, on_message=recorder.handle
        )
        final, results = coordinator.run()
        values: Mapping[str, Any] = next((end.values for end in results.values() if "epoch" in end.values), {})
        result = result_of(values)
        if final:
            picture = recorder.write({name: tensor.array for name, tensor in final.items()}, int(values["epoch"]))
            result |= {"picture": picture} if picture else {}
        return {**result, "ranks": len(results)}

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Train as a rank of each group that this node joins."""
        import torch

        from ...data.graphs import load_graph
        from ...engines.collective.elastic_groups import elastic_groups
        from .node_program import run_rank

        settings = cast(CCGCConfig, config)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        seed = session.run.seed if settings.seed is None else Seed(settings.seed)
        graph = load_graph(settings.dataset, session.data, seed)
        graph = graph.labeled_only() if settings.drop_unlabeled else graph
        session.log(f"{graph.name}: {graph.nodes} nodes, {graph.edges.shape[1]} edges, {graph.width} attributes")
        for group in elastic_groups(session, session.peer_interface):
            with group:
                run_rank(settings, graph, seed, group)


def _stand_in(config: CCGCConfig, step: int) -> int:
    """Return the step of the rehearsal that sends what a step of a run sends.

    Of the rehearsal's steps 1 to 3 are in the warm-up; 1 and 4 evaluate, 2 and 6 report figures, 3 and 5 do neither.
    """
    if (step - 1) % config.kmeans_every == 0:
        return 1 if step <= config.warmup else 4
    if step % config.log_every == 0:
        return 2 if step <= config.warmup else 6
    return 3 if step <= config.warmup else 5


WORKLOAD = CCGCWorkload()
