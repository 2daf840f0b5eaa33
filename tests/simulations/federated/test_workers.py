"""Any number of worker processes gives the bits of one player, and of real programs."""

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
from farshore.engines.federated.tree import Part
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


#: How updates and states travel with a method, so that the losses of encodings are part of the bits.
LINKS: dict[str, Any] = {
    "fedprox": {"uplink": {"encoding": "topk", "fraction": 0.05}, "downlink": {"encoding": "int8"}},
    "fednova": {"uplink": {"encoding": "lowrank", "rank": 2, "values": "fp16"}, "downlink": {"encoding": "fp16"}},
}


def config(method: str) -> Any:
    virtual = {"enabled": method in ("fedavg", "fedprox")}
    return WORKLOAD.config(method=method, virtual=virtual, **SETTINGS, **LINKS.get(method, {}))


def cast(method: str, folder: Path) -> WorkerSpec:
    return WorkerSpec("vhl", json.dumps(config(method).model_dump(mode="json")), SEED, {}, CLIENTS, str(folder))


def crew(method: str, folder: Path) -> Workers:
    """Two workers, and the memories that their processes map too."""
    task = WORKLOAD.task(config(method), Seed(SEED), lambda name: Path(name), CLIENTS)
    flat = task.model()
    kept = WORKLOAD.codec(config(method), flat).client_state_sizes(task.method(flat), flat)
    return Workers(cast(method, folder), 2, SharedClientStates(folder, CLIENTS, kept))


def killed(workers: Workers, monkeypatch: pytest.MonkeyPatch, kills: Callable[[int, int], bool]) -> list[int]:
    """Kill whoever was asked for a block where ``kills(round, times so far)``; the list gets the rounds."""
    ask, done = workers._ask, list[int]()

    def asked(connection: Any, round_index: int, cohort: Any, block: Any) -> Any:
        process = psutil.Process(workers._processes[connection].pid)
        if not kills(round_index, len(done)):
            return ask(connection, round_index, cohort, block)
        done.append(round_index)
        answer = ask(connection, round_index, cohort, block)
        connection.poll(60)  # it has played, and changed memories
        connection.recv_bytes()
        process.kill()
        return answer

    monkeypatch.setattr(workers, "_ask", asked)
    return done


def rounds(method: str, make: Callable[[Any], Any]) -> tuple[Part, list[Any]]:
    """The run's last state and the replies of every round."""
    task = WORKLOAD.task(config(method), Seed(SEED), lambda name: Path(name), CLIENTS)
    flat = task.model()
    codec = WORKLOAD.codec(config(method), flat)
    made = task.method(flat)
    fleet = SimulatedPool(make(task), CLIENTS, codec)
    state, replies = made.start(flat), []
    for round_index in (1, 2):
        gathered = fleet.round(round_index, cohort(Seed(SEED), round_index, CLIENTS, 7), state, made)
        assert gathered.total is not None
        replies.append(gathered.replies)
        seen = {**state, **gathered.received}
        state = restore_downlink_loss(made.finish(seen, gathered.total, CLIENTS), state, seen)
    return state, replies


@pytest.mark.parametrize(
    "method", ["fedavg", "scaffold", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fedprox", "fednova"))]
)
def test_one_player_two_workers_and_real_programs_give_the_same_bits(tmp_path: Path, method: str) -> None:
    alone, told = rounds(
        method, lambda task: ClientRunner(task, WORKLOAD.codec(config(method), task.model()), LocalClientStates())
    )
    with crew(method, tmp_path / "memories") as workers:
        together, told_too = rounds(method, lambda _: workers)
    assert told_too == told
    assert [n for n in alone if not np.array_equal(alone[n], together[n])] == []

    nodes = [f"node-{i}" for i in range(CLIENTS)]
    directory = tmp_path / "run"
    result = InProcessRun(WORKLOAD, config(method), directory, nodes, seed=SEED).run()
    assert result["rounds"] == 2
    from farshore.runs.checkpoints import CheckpointStore

    real, _ = CheckpointStore(directory / "server").load(2)
    assert [n for n in alone if not np.array_equal(alone[n], real[n])] == []


@pytest.mark.slow
def test_what_a_killed_worker_had_changed_is_taken_back_and_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with crew("scaffold", tmp_path / "a") as workers:
        undisturbed, told = rounds("scaffold", lambda _: workers)
    with crew("scaffold", tmp_path / "b") as workers:
        done = killed(workers, monkeypatch, lambda round_index, so_far: so_far < round_index)  # once in each round
        disturbed, told_too = rounds("scaffold", lambda _: workers)
    assert done == [1, 2]
    assert told_too == told
    assert [n for n in undisturbed if not np.array_equal(undisturbed[n], disturbed[n])] == []
    files = [p.name for p in (tmp_path / "a").iterdir() if not p.name.startswith("undo")]
    assert len(files) > 1
    assert [n for n in files if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()] == []


@pytest.mark.slow
def test_workers_that_die_again_and_again_end_the_simulation_in_one_line_and_nobody_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = crew("fedavg", tmp_path / "memories")
    killed(workers, monkeypatch, lambda round_index, so_far: True)
    why = r"round 1: workers die again and again: worker \d of the simulation died"
    with pytest.raises(RunFailedError, match=why), workers:
        rounds("fedavg", lambda _: workers)
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    wrong = WorkerSpec("ping", "{}", SEED, {}, CLIENTS, str(tmp_path))
    with (
        pytest.raises(RunFailedError, match="'ping' is no federated method"),
        Workers(wrong, 1, SharedClientStates(tmp_path, CLIENTS, {})),
    ):
        pass
