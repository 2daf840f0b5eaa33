"""The ``sweep`` workload: a work queue whose items are runs of a method on one node alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from ...core.errors import DataError
from ...core.nodes import roles_of
from ...core.processes import Json
from ...core.session import NodeSession, ServerSession, Workload
from ...core.traffic_plan import Rehearsal
from ...core.workloads import load
from ...engines.work_queue.item import ItemResult, Outcome, WorkItem
from ...engines.work_queue.workload import Job, Perform, WorkQueueWorkload
from ...wire.io import IoThread
from .alone import thread_environment
from .cells import cells, first_budget, method_config, method_of, settings_of
from .config import SweepConfig
from .rungs import next_rung
from .summary import summarize
from .worker import Worker


class SweepWorkload(WorkQueueWorkload[SweepConfig]):
    """Runs a method once per cell of a grid and seed; see :class:`SweepConfig`."""

    name = "sweep"
    summary = "run any method that needs one node only over a grid of settings and seeds, on all nodes"
    config: type[BaseModel] = SweepConfig

    # ---- what nodes need -----------------------------------------------------------------------------------------

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the data sets of the method in all cells, but for those that are sent."""
        settings = cast(SweepConfig, config)
        workload, configs = method_of(settings)
        found = [tuple(names) for each in configs for role in roles_of(workload, each) for names in role.data]
        return [names for names in dict.fromkeys(found) if not set(names) & set(settings.inputs)]

    def node_packages(self, config: BaseModel) -> Sequence[str]:
        """Return what both programs of the method import: both run on a node."""
        workload, configs = method_of(cast(SweepConfig, config))
        server = getattr(workload, "server_packages", None)
        found = [name for each in configs for role in roles_of(workload, each) for name in role.packages]
        found += [name for each in configs for name in (server(each) if server is not None else ())]
        found += ["torch"] if workload.uses_torch else []
        return tuple(dict.fromkeys(found))

    def node_memory(self, config: BaseModel) -> int:
        """Return the memory of a node's items, in bytes; 0 = not known."""
        settings = cast(SweepConfig, config)
        workload, configs = method_of(settings)
        return max(role.memory_bytes for each in configs for role in roles_of(workload, each)) * max(1, settings.slots)

    def check(self, config: BaseModel, find: Callable[[str], Path]) -> None:
        """Check the method and all cells; see :func:`.cells.method_of`."""
        workload, configs = method_of(cast(SweepConfig, config))
        inner = getattr(workload, "check", None)
        if inner is None:
            return
        for each in configs:
            with suppress(DataError):  # the data are on the nodes
                inner(each, find)

    def rehearsal(self, config: BaseModel) -> Rehearsal:
        """Rehearse the first item: all items send the same messages."""
        settings = cast(SweepConfig, config)
        grid = {key: values[:1] for key, values in settings.grid.items()}
        short = settings.model_copy(update={"grid": grid, "seeds": settings.seeds[:1], "halving": None})
        return Rehearsal(short, "step", {1: range(1, settings.count + 1)})

    # ---- the queue -----------------------------------------------------------------------------------------------

    def inputs(self, config: SweepConfig) -> Sequence[str]:
        """Return the names of the data sets that are sent to nodes."""
        return config.inputs

    def threads(self, config: SweepConfig) -> int:
        """Return the threads of an item."""
        return config.threads

    def items(
        self, config: SweepConfig, inputs: Mapping[str, str], results: Sequence[ItemResult]
    ) -> Sequence[WorkItem]:
        """Return the items of the next rung; without halving, there is one."""
        workload = load(config.method)
        budget, chosen = first_budget(config), cells(config)
        if results:
            found = next_rung(config, results)
            if found is None:
                return ()
            budget, chosen = found
        return [
            WorkItem(self._item(config, workload, cell, budget), seed, inputs)
            for cell in chosen
            for seed in config.seeds
        ]

    @staticmethod
    def _item(config: SweepConfig, workload: Workload, cell: Mapping[str, Any], budget: int | None) -> dict[str, Any]:
        """Return the content of an item: the complete configuration, so that its identity has all that matters."""
        complete = method_config(workload, settings_of(config, cell, budget)).model_dump(mode="json")
        item = {"method": config.method, "config": complete, "cell": dict(cell), "threads": config.threads}
        return item if budget is None else {**item, "budget": budget}

    def perform(self, config: SweepConfig, job: Job) -> Outcome:
        """Run an item in a process of its own."""
        with IoThread("sweep worker") as io:
            worker = Worker(io, thread_environment(config.threads))
            try:
                return worker.run(_request(job), job.cancellation)
            finally:
                worker.stop()

    @contextmanager
    def performer(self, config: SweepConfig, session: NodeSession) -> Iterator[Perform]:
        """Provide a process that runs one item after another."""
        with IoThread("sweep worker") as io:
            worker = Worker(io, thread_environment(config.threads))
            try:
                yield lambda job: worker.run(_request(job), job.cancellation)
            finally:
                worker.stop()

    def summarize(self, config: SweepConfig, results: Sequence[ItemResult], session: ServerSession) -> dict[str, Any]:
        """Write the table of all items, and return a summary."""
        return summarize(config, results, session.run.directory)


def _request(job: Job) -> Json:
    """Return the message that asks a worker process for an item."""
    item = job.item.config
    workload = load(str(item["method"]))
    config = method_config(workload, item["config"])
    wanted = {name for role in roles_of(workload, config) for names in role.data for name in names}
    data = {}
    for name in sorted(wanted | set(job.item.inputs)):
        with suppress(DataError):  # one of several names will do; the method says which one it misses
            data[name] = str(job.find(name))
    return {
        "type": "item",
        "method": item["method"],
        "config": item["config"],
        "threads": item["threads"],
        "seed": job.item.seed,
        "folder": str(job.folder),
        "data": data,
    }


WORKLOAD = SweepWorkload()
