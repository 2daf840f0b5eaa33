"""Any number of worker processes gives the bits of one player, and of real programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from farshore.algorithms.federated.fleet import cohort
from farshore.algorithms.federated.memories import OwnMemories
from farshore.algorithms.federated.rounds import restored
from farshore.algorithms.federated.tree import Part
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import RunFailedError
from farshore.core.seeds import Seed
from farshore.simulations.fleet import SimulatedFleet
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.player import Player
from farshore.simulations.worker_process import Cast
from farshore.simulations.workers import Workers

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

CLIENTS, SEED = 12, 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as a worker has: the number of threads is part of the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def cast(method: str, folder: Path) -> Cast:
    return Cast("vhl", json.dumps(config(method).model_dump(mode="json")), SEED, {}, CLIENTS, str(folder))


def rounds(method: str, make: Callable[[Any], Any]) -> tuple[Part, list[Any]]:
    """The run's last state and the replies of every round."""
    task = WORKLOAD.task(config(method), Seed(SEED), lambda name: Path(name), CLIENTS)
    flat = task.model()
    codec = WORKLOAD.codec(config(method), flat)
    made = task.method(flat)
    fleet = SimulatedFleet(make(task), CLIENTS, codec)
    state, replies = made.start(flat), []
    for number in (1, 2):
        gathered = fleet.round(number, cohort(Seed(SEED), number, CLIENTS, 7), state, made)
        assert gathered.total is not None
        replies.append(gathered.replies)
        seen = {**state, **gathered.seen}
        state = restored(made.finish(seen, gathered.total, CLIENTS), state, seen)
    return state, replies


@pytest.mark.parametrize(
    "method", ["fedavg", "scaffold", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fedprox", "fednova"))]
)
def test_one_player_two_workers_and_real_programs_give_the_same_bits(tmp_path: Path, method: str) -> None:
    alone, told = rounds(method, lambda task: Player(task, WORKLOAD.codec(config(method), task.model()), OwnMemories()))
    with Workers(cast(method, tmp_path / "memories"), 2) as workers:
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


def test_a_killed_worker_ends_the_simulation_in_one_line_and_nobody_is_left(tmp_path: Path) -> None:
    def kill(_: Any) -> Workers:
        for process in psutil.Process().children():
            if "spawn_main" in " ".join(process.cmdline()):
                process.kill()
        return workers

    with (
        pytest.raises(RunFailedError, match=r"worker \d of the simulation died"),
        Workers(cast("fedavg", tmp_path / "memories"), 2) as workers,
    ):
        rounds("fedavg", kill)
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    wrong = Cast("ping", "{}", SEED, {}, CLIENTS, str(tmp_path))
    with pytest.raises(RunFailedError, match="'ping' is no federated method"), Workers(wrong, 1):
        pass
