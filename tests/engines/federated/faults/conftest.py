"""Submits runs with planned faults (``fitting_method.py``) over real processes, and computes their expected state."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from farshore.core.seeds import Seed
from farshore.core.workloads import load
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.tree import NamedArrays, TreeSum
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history

NODES = ("a", "b", "c")


@dataclass
class FaultRun:
    """A submitted run with a plan of faults.

    Attributes
    ----------
    cloud : Cloud
    id : str
    config : dict
        The run's settings, without the plan.
    workload : str
    """

    cloud: Any
    id: str
    config: dict[str, Any]
    workload: str = "fitting"

    @property
    def log(self) -> str:
        return str(self.cloud.log(self.cloud.run(self.id)))

    def reached(self, place: str) -> bool:
        """Whether the run reached a place of the plan."""
        return (Path(self.config["folder"]) / place.replace(" ", "-")).exists()

    def release(self) -> None:
        """Let programs that hold continue."""
        (Path(self.config["folder"]) / "release").touch()

    def finish(self) -> Any:
        """Wait for the run to finish; return its information."""
        return self.cloud.when(self.id, "finished", seconds=150)

    def outcome(self) -> tuple[NamedArrays, list[dict[str, Any]]]:
        """Wait for the run to finish; return its last state and its history."""
        folder, last = Path(self.finish().directory), self.config["rounds"]
        return CheckpointStore(folder / "checkpoints").load(last)[0], read_history(folder, last)

    def ledger(self) -> list[dict[str, Any]]:
        """All transfers of the finished run."""
        return list(RunDirectory.open(Path(self.finish().directory)).read_ledger().to_pylist())

    def updates(self) -> list[tuple[int, str]]:
        """Round and node of every update that arrived."""
        return sorted((row["round"], row["node"]) for row in self.ledger() if row["kind"] == "update")

    def program(self, node: str) -> psutil.Process:
        """The process of a node's program."""
        children = psutil.Process(self.cloud.agents[node].pid).children()
        return next(p for p in children if p.is_running() and "farshore.client.node_process" in p.cmdline())


class Faults:
    """Submits runs with plans; ``folder`` has a marker file for each place that a run reached."""

    nodes = NODES

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def submit(self, cloud: Any, plan: dict[str, str], workload: str = "fitting", **settings: Any) -> FaultRun:
        """Submit a run with a plan to a server with the nodes."""
        self._count += 1
        folder = self._folder / f"plan-{self._count}"
        folder.mkdir(parents=True)
        config = {"rounds": 4, "per_round": 3, "least": 2, "checkpoint_every": 1, "folder": str(folder), **settings}
        run_id = cloud.submit({**config, "plan": plan}, method=workload, nodes=NODES)
        return FaultRun(cloud, run_id, config, workload)

    @staticmethod
    def expected(
        run: FaultRun,
        absent: Collection[tuple[int, int]] = (),
        state_before: Callable[[int, int], int] | None = None,
    ) -> NamedArrays:
        """Compute the run's last state in this process; a round with fewer than ``least`` replies changes nothing.

        Parameters
        ----------
        run : FaultRun
        absent : collection of (round, client)
            Updates that were left out.
        state_before : callable, optional
            ``state_before(round, client)``: the round whose client state the client has before ``round``; by default
            the previous one.
        """
        workload: Any = load(run.workload)
        settings = workload.config(**run.config)
        torch.set_num_threads(1)
        task = workload.task(settings, Seed(7), Path, len(NODES))
        flat = task.model()
        method = task.method(flat)
        state = method.start(flat)
        kept: list[list[dict[str, torch.Tensor]]] = [[{}] for _ in NODES]  # after each round, from 0
        for round_index in range(1, settings.rounds + 1):
            chosen = cohort(Seed(7), round_index, len(NODES), settings.per_round)
            tree, replies = TreeSum(len(chosen)), 0
            for client, states in enumerate(kept):
                after = round_index - 1 if state_before is None else state_before(round_index, client)
                states.append({name: tensor.clone() for name, tensor in states[after].items()})
            for position, client in enumerate(chosen):
                if (round_index, client) in absent:
                    tree.skip(position)
                    continue
                work = task.work(flat, client, round_index)
                work.client_state = kept[client][round_index]
                tree.add(position, method.contribution(state, method.local(flat, state, work)))
                replies += 1
            total = tree.total()
            if total is not None and replies >= settings.least:
                state = method.finish(state, total, len(NODES))
        return state

    @staticmethod
    def missing(history: list[dict[str, Any]]) -> set[tuple[int, int]]:
        """Round and client of every update that was left out."""
        return {(entry["round"], int(client)) for entry in history for client in entry["missing"]}

    @staticmethod
    def same(state: NamedArrays, other: NamedArrays) -> bool:
        """Whether two states are bit-identical."""
        return state.keys() == other.keys() and all(np.array_equal(state[n], other[n]) for n in state)


@pytest.fixture(scope="session")
def method_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the test workloads are installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "fitting-1.dist-info"
    info.mkdir()
    (site / "fitting_method.py").write_text((Path(__file__).parent / "fitting_method.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fitting\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[farshore.workloads]\nfitting = fitting_method:FITTING\nplanned_vhl = fitting_method:VIRTUAL\n"
    )
    return site


@pytest.fixture(scope="module")
def faults(method_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Submits runs with plans; the test workloads are installed for every process started from here."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(method_site), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.syspath_prepend(str(method_site))
        yield Faults(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def shared(faults: Faults, start_once: Callable[..., Any]) -> Any:
    """A server with the three nodes, for all tests of a module; heartbeats are too slow to be missed by accident."""
    cloud = start_once(heartbeat_seconds=2.0)
    cloud.join(*NODES)
    return cloud
