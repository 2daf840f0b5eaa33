"""What the platform promises of every built-in method, over a real server and real nodes; see ``small_runs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

import farshore
from farshore.core.errors import FarshoreError
from farshore.core.workloads import BUILT_IN, load
from farshore.runs.directory import RunDirectory
from tests.conftest import ENDED, children

from .recorded_run import Arrays, Frames, Recorder, differing, frames_of, read_states
from .small_runs import SEED, SMALL_RUNS, SmallRun, UserProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(240), pytest.mark.usefixtures("one_thread")]

#: The others only take seconds each to start.
FAST = ("ping", "vhl")
NAMES = sorted(BUILT_IN.keys() & SMALL_RUNS.keys())
METHODS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
STARTED_BY_NODES = [
    pytest.param(name, marks=pytest.mark.slow) for name in NAMES if not isinstance(SMALL_RUNS[name], UserProcess)
]
PROGRAMS = ("farshore.client.node_process", "farshore.server.run_process")


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Limit the libraries of every process to one thread, on which the bits of a result may depend."""
    from threadpoolctl import threadpool_limits

    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def cluster(start_once: Callable[..., Any], data_sets: dict[str, Path], one_core: None) -> Any:
    """A server with three nodes, which have the data sets and accept the Flower app."""
    flower = SMALL_RUNS["flower"]
    accepted = frozenset(
        {each.config(each.workload("flower")).digest for each in (flower, flower.prolonged())}  # type: ignore[attr-defined]
    )
    cloud = start_once(data=data_sets)
    cloud.join("node-1", "node-2", "node-3", data=data_sets, accept_apps=accepted)
    return cloud


class RealRun:
    """A run of a method on the cluster."""

    def __init__(self, cloud: Any, name: str, small: SmallRun) -> None:
        self.cloud, self.nodes = cloud, small.node_names
        config = small.config(small.workload(name)).model_dump(mode="json")
        self.id = cloud.submit(config, method=name, nodes=self.nodes)

    def programs(self) -> list[psutil.Process]:
        """Processes of the run's programs."""
        owners = [self.cloud.server, *self.cloud.agents.values()]
        found = (process for owner in owners for process in children(owner.pid))
        return [p for p in found if any(module in " ".join(command_line(p)) for module in PROGRAMS)]

    def node_program(self, node: str) -> psutil.Process:
        """The process of a node's program."""
        found = children(self.cloud.agents[node].pid)
        return next(p for p in found if PROGRAMS[0] in " ".join(command_line(p)))

    def states(self) -> Arrays:
        """As :attr:`Recorded.states`, of the finished run."""
        directory = Path(self.cloud.run(self.id).directory)
        places = {name: self.cloud.folder / "nodes" / name / "runs" / self.id / "checkpoints" for name in self.nodes}
        return read_states(directory, {"server": directory / "checkpoints", **places})

    def frames(self) -> Frames:
        """As :attr:`Recorded.frames`, of the finished run."""
        return frames_of(RunDirectory.open(Path(self.cloud.run(self.id).directory)).read_ledger().to_pylist())


def command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def run_as_user(cloud: Any, small: UserProcess, folder: Path, until: Callable[..., Any]) -> tuple[Arrays, Frames]:
    """Run the user's script in this process, which is the node."""
    with cloud.admin() as admin:
        token = admin.create_token(valid_seconds=600).token
    (name,) = small.node_names
    model = farshore.split(
        small.model(), cloud.local.address, cut=small.CUT, token=token, name=name, home=folder / "home", seed=SEED
    )
    with model.farshore:
        small.train(model, folder / "states")
        run = model.farshore.run
    info = until(lambda: (found := cloud.run(run)).state in ENDED and found)
    assert info.state == "finished"
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    return read_states(folder, {}), frames_of(rows)


@pytest.mark.parametrize("name", METHODS)
def test_a_simulated_run_has_the_states_and_the_ledger_of_a_real_one(
    name: str, cluster: Any, data_sets: Mapping[str, Path], tmp_path: Path, until: Callable[..., Any]
) -> None:
    small = SMALL_RUNS[name]
    simulated = Recorder(name, small, data_sets, tmp_path / "simulated").finish()
    if isinstance(small, UserProcess):
        states, frames = run_as_user(cluster, small, tmp_path / "real", until)
    else:
        real = RealRun(cluster, name, small)
        cluster.when(real.id, "finished", seconds=120)
        states, frames = real.states(), real.frames()
    assert states
    assert differing(states, simulated.states) == []
    assert frames == simulated.frames


@pytest.mark.parametrize("name", STARTED_BY_NODES)
def test_a_run_whose_node_program_is_killed_ends_as_its_method_says(
    name: str, cluster: Any, data_sets: Mapping[str, Path], tmp_path: Path
) -> None:
    small = SMALL_RUNS[name].prolonged()
    real = RealRun(cluster, name, small)
    cluster.when(real.id, "running", done=1, seconds=90)
    real.node_program("node-1").kill()
    info = cluster.when(real.id, "finished", seconds=120)
    if load(name).on_lost_node == "restart":
        assert info.epoch >= 1
        expected = Recorder(name, small, data_sets, tmp_path / "simulated").finish()
        assert differing(real.states(), expected.states) == []
    else:
        assert "node-1" in cluster.log(info), "the loss is in the log"


@pytest.mark.parametrize("name", STARTED_BY_NODES)
def test_a_cancelled_run_leaves_no_process_behind(name: str, cluster: Any, until: Callable[..., Any]) -> None:
    real = RealRun(cluster, name, SMALL_RUNS[name].prolonged())
    cluster.when(real.id, "running", done=1, seconds=90)
    with cluster.admin() as admin:
        admin.cancel(real.id)
    cluster.when(real.id, "cancelled")
    until(lambda: not real.programs())


@pytest.mark.slow
def test_a_run_that_only_a_users_process_can_continue_is_neither_resumed_nor_started_by_others(
    cluster: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    name, small = "split_segment", SMALL_RUNS["split_segment"]
    assert "resumed" in small.without
    config = small.config(small.workload(name)).model_dump(mode="json")
    run = cluster.submit(config, method=name, nodes=("node-1",))
    info = cluster.when(run, "failed")
    assert "farshore.split(model" in info.reason
    with cluster.admin() as admin, pytest.raises(FarshoreError):
        admin.resume(run)
