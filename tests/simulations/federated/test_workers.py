"""Any number of worker processes has the bits of one process, and of real programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import RunFailedError
from farshore.core.seeds import Seed
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.client_state import LocalClientStates
from farshore.engines.federated.rounds import restore_downlink_loss
from farshore.engines.federated.tree import NamedArrays
from farshore.simulations.federated.client_runner import ClientRunner
from farshore.simulations.federated.shared_client_state import SharedClientStates
from farshore.simulations.federated.simulated_pool import SimulatedPool
from farshore.simulations.federated.worker_process import WorkerSpec
from farshore.simulations.federated.workers import Workers
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, SEED = 12, 4


SETTINGS: dict[str, Any] = {"rounds": 2, "per_round": 7, "local_epochs": 1, "lr": 0.1, "checkpoint_every": 1}
SETTINGS |= {"partition": {"kind": "lda", "alpha": 0.5, "min_size": 10}, "eval_every": 2}


#: Encodings by method, so that encoding losses are part of the compared bits.
LINKS: dict[str, Any] = {
    "fedprox": {"uplink": {"encoding": "topk", "fraction": 0.05}, "downlink": {"encoding": "int8"}},
    "fednova": {"uplink": {"encoding": "lowrank", "rank": 2, "values": "fp16"}, "downlink": {"encoding": "fp16"}},
}


def config(method: str) -> Any:
    virtual = {"enabled": method in ("fedavg", "fedprox")}
    return WORKLOAD.config(method=method, virtual=virtual, **SETTINGS, **LINKS.get(method, {}))


def worker_spec(method: str, folder: Path) -> WorkerSpec:
    return WorkerSpec("vhl", json.dumps(config(method).model_dump(mode="json")), SEED, {}, CLIENTS, str(folder))


def two_workers(method: str, folder: Path) -> Workers:
    """Return two workers that share client states with this process."""
    task = WORKLOAD.task(config(method), Seed(SEED), lambda name: Path(name), CLIENTS)
    flat = task.model()
    lengths = WORKLOAD.codec(config(method), flat).client_state_sizes(task.method(flat), flat)
    return Workers(worker_spec(method, folder), 2, SharedClientStates(folder, CLIENTS, lengths))


def kill_workers(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, should_kill: Callable[[int, int], bool]
) -> list[int]:
    """Kill the worker of a requested block if ``should_kill(round, kills so far)``; return a list of these rounds."""
    request, killed_rounds = workers._request, list[int]()

    def request_and_kill(connection: Any, round_index: int, cohort: Any, block: Any) -> Any:
        process = psutil.Process(workers._processes[connection].pid)
        if not should_kill(round_index, len(killed_rounds)):
            return request(connection, round_index, cohort, block)
        killed_rounds.append(round_index)
        requested = request(connection, round_index, cohort, block)
        connection.poll(60)  # it has trained, and changed client states
        connection.recv_bytes()
        process.kill()
        return requested

    monkeypatch.setattr(workers, "_request", request_and_kill)
    return killed_rounds


def rounds(method: str, make_executor: Callable[[Any], Any]) -> tuple[NamedArrays, list[Any]]:
    """Return the final state and the replies of every round."""
    task = WORKLOAD.task(config(method), Seed(SEED), lambda name: Path(name), CLIENTS)
    flat = task.model()
    codec = WORKLOAD.codec(config(method), flat)
    method_object = task.method(flat)
    pool = SimulatedPool(make_executor(task), CLIENTS, codec)
    state, replies = method_object.start(flat), []
    for round_index in (1, 2):
        result = pool.round(round_index, cohort(Seed(SEED), round_index, CLIENTS, 7), state, method_object)
        assert result.total is not None
        replies.append(result.replies)
        seen = {**state, **result.received}
        state = restore_downlink_loss(method_object.finish(seen, result.total, CLIENTS), state, seen)
    return state, replies


@pytest.mark.parametrize(
    "method", ["fedavg", "scaffold", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fedprox", "fednova"))]
)
def test_one_process_two_workers_and_real_programs_have_the_same_bits(tmp_path: Path, method: str) -> None:
    one_process, replies_one = rounds(
        method, lambda task: ClientRunner(task, WORKLOAD.codec(config(method), task.model()), LocalClientStates())
    )
    with two_workers(method, tmp_path / "memories") as workers:
        with_workers, replies_other = rounds(method, lambda _: workers)
    assert replies_other == replies_one
    assert [n for n in one_process if not np.array_equal(one_process[n], with_workers[n])] == []

    nodes = [f"node-{i}" for i in range(CLIENTS)]
    directory = tmp_path / "run"
    result = InProcessRun(WORKLOAD, config(method), directory, nodes, seed=SEED).run()
    assert result["rounds"] == 2
    from farshore.runs.checkpoints import CheckpointStore

    real, _ = CheckpointStore(directory / "server").load(2)
    assert [n for n in one_process if not np.array_equal(one_process[n], real[n])] == []


@pytest.mark.slow
def test_block_of_a_killed_worker_is_undone_and_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_workers("scaffold", tmp_path / "a") as workers:
        uninterrupted, replies_one = rounds("scaffold", lambda _: workers)
    with two_workers("scaffold", tmp_path / "b") as workers:
        killed_rounds = kill_workers(
            workers, monkeypatch, lambda round_index, kills_so_far: kills_so_far < round_index
        )  # once in each round
        with_kills, replies_other = rounds("scaffold", lambda _: workers)
    assert killed_rounds == [1, 2]
    assert replies_other == replies_one
    assert [n for n in uninterrupted if not np.array_equal(uninterrupted[n], with_kills[n])] == []
    files = [p.name for p in (tmp_path / "a").iterdir() if not p.name.startswith("undo")]
    assert len(files) > 1
    assert [n for n in files if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()] == []


@pytest.mark.slow
def test_repeatedly_dying_workers_fail_the_run_and_leave_no_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = two_workers("fedavg", tmp_path / "memories")
    kill_workers(workers, monkeypatch, lambda round_index, kills_so_far: True)
    message = r"round 1: too many workers died: worker \d of the simulation died"
    with pytest.raises(RunFailedError, match=message), workers:
        rounds("fedavg", lambda _: workers)
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_worker_that_fails_to_start_reports_the_reason(tmp_path: Path) -> None:
    spec = WorkerSpec("ping", "{}", SEED, {}, CLIENTS, str(tmp_path))
    with (
        pytest.raises(RunFailedError, match="only federated methods can be simulated; 'ping' is not one"),
        Workers(spec, 1, SharedClientStates(tmp_path, CLIENTS, {})),
    ):
        pass
