"""Federated rounds over real processes that die, come back and send what they should not: the sum does not show it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.federated.fleet import cohort
from farshore.algorithms.federated.tree import Part, TreeSum
from farshore.core.seeds import Seed
from farshore.core.workloads import load
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.history import read_history

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]

NODES = ("a", "b", "c")
ROUNDS = 4

#: A method with a plan of what befalls whom: keyed by place in the run, done once in the life of the test's folder.
WORKLOAD = """
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from farshore.algorithms.federated.config import FederatedConfig
from farshore.algorithms.federated.local import Sgd
from farshore.algorithms.federated.methods import FedAvg, Scaffold
from farshore.algorithms.federated.supervised import Supervised
from farshore.algorithms.federated.workload import FederatedWorkload
from farshore.core.message import Tensor


class Config(FederatedConfig):
    method: str = "fedavg"
    folder: str
    plan: dict[str, str] = {}


def befall(config, place, message=None):
    what = config.plan.get(place)
    if what is None:
        return message
    try:
        (Path(config.folder) / place.replace(" ", "-")).touch(exist_ok=False)
    except FileExistsError:
        return message
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill server":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    elif what == "raise":
        raise ValueError("the user's own mistake")
    elif what == "exit":
        raise SystemExit(3)
    elif what == "print":
        print("many words " * 200_000)
    elif what in ("nan", "shape", "dtype", "huge"):
        array = message.array("floats")
        bad = {
            "nan": np.full_like(array, np.nan), "shape": array[:-1], "dtype": array.astype(np.float64),
            "huge": np.full_like(array, 3e38),
        }[what]
        return replace(message, tensors={**message.tensors, "floats": Tensor(bad)})
    return message


class Sending:
    def __init__(self, session, config):
        self._channel, self._config, self._node = session.channel, config, session.node
        self.receive = session.channel.receive

    def send(self, message, timeout=None):
        if message.kind != "update":
            return self._channel.send(message, timeout)
        message = befall(self._config, f"{self._node} trained {message.round}", message)
        self._channel.send(message, timeout)
        befall(self._config, f"{self._node} sent {message.round}")


class Fitting(FederatedWorkload):
    name, summary, config = "fitting", "three lines to fit", Config

    def task(self, config, seed, find, population):
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(60, 6, generator=generator)
        y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
        build = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        method = (lambda _: Scaffold()) if config.method == "scaffold" else (lambda _: FedAvg())
        parts = [np.arange(c, 60, population) for c in range(population)]
        return Supervised(x, y, x, y, parts, seed, build, lambda n: Sgd(0.1), method, batch=8)

    def node_program(self, session, config):
        task = self.task
        session.channel, channel = Sending(session, config), session.channel
        node = session.node

        def planned(*args):
            made = task(*args)
            work = made.work

            def planned_work(flat, client, number):
                befall(config, f"{node} asked {number}")
                return work(flat, client, number)

            made.work = planned_work
            return made

        self.task = planned
        super().node_program(session, config)
        session.channel = channel

    def server_program(self, session, config):
        save, progress = session.save_checkpoint, session.progress

        def planned(step, tensors, meta):
            befall(config, f"server before saving {step}")
            save(step, tensors, meta)
            befall(config, f"server saved {step}")

        session.save_checkpoint = planned
        return super().server_program(session, config)


WORKLOAD = Fitting()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The method above, installed for every process that is started from here."""
    site = tmp_path / "site"
    info = site / "fitting-1.dist-info"
    info.mkdir(parents=True)
    (site / "fitting_method.py").write_text(WORKLOAD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fitting\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[farshore.workloads]\nfitting = fitting_method:WORKLOAD\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")])))
    monkeypatch.syspath_prepend(str(site))
    return tmp_path


def expected(config: dict[str, Any], absent: Callable[[int, int], bool] = lambda *_: False) -> Part:
    """The rounds by hand; a round with fewer than ``least`` replies changes nothing."""
    workload: Any = load("fitting")
    settings = workload.config(**config)
    torch.set_num_threads(1)
    task = workload.task(settings, Seed(7), Path, len(NODES))
    flat = task.model()
    method = task.method(flat)
    state = method.start(flat)
    memories: list[dict[str, torch.Tensor]] = [{} for _ in NODES]
    for number in range(1, settings.rounds + 1):
        chosen = cohort(Seed(7), number, len(NODES), settings.per_round)
        tree, replies = TreeSum(len(chosen)), 0
        for place, client in enumerate(chosen):
            if absent(number, client):
                tree.skip(place)
                continue
            work = task.work(flat, client, number)
            work.memory = memories[client]
            tree.add(place, method.contribution(state, method.local(flat, state, work)))
            replies += 1
        total = tree.total()
        if total is not None and replies >= settings.least:
            state = method.finish(state, total, len(NODES))
    return state


def outcome(info: Any) -> tuple[Part, list[dict[str, Any]]]:
    """The last state and the history of a run that has ended."""
    folder = Path(info.directory)
    return CheckpointStore(folder / "checkpoints").load(ROUNDS)[0], read_history(folder, ROUNDS)


def play(start: Any, installed: Path, plan: dict[str, str], **more: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Submit a run with that plan; returns the cloud, the run's id and its configuration."""
    config = {"rounds": ROUNDS, "per_round": 3, "least": 2, "checkpoint_every": 1, "folder": str(installed), **more}
    cloud = start()
    cloud.join(*NODES)
    return cloud, cloud.submit({**config, "plan": plan}, method="fitting", nodes=NODES), config


def same(state: Part, other: Part) -> bool:
    return state.keys() == other.keys() and all(np.array_equal(state[n], other[n]) for n in state)


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("place", ["asked", "trained"])
def test_a_node_that_dies_is_left_out_by_name_and_comes_back(
    start: Any, installed: Path, place: str, least: int
) -> None:
    cloud, run_id, config = play(start, installed, {f"b {place} 2": "kill"}, least=least)
    info = cloud.when(run_id, "finished", seconds=120)
    state, history = outcome(info)
    missing = {(entry["round"], int(client)) for entry in history for client in entry["missing"]}
    assert (2, 1) in missing
    assert {client for _, client in missing} == {1}
    if least == 3:  # the next round waits for it
        assert missing == {(2, 1)}
        assert "b is back" in cloud.log(info)
    assert same(state, expected(config, lambda *where: where in missing))
    log = cloud.log(info)
    assert "round 2: without b: node b: its program was killed by signal 9" in log
    assert "node b: starting its program again" in log
    assert info.epoch == 1


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nan", "its 'floats' are not finite"),
        ("shape", "its 'floats' are float32"),
        ("dtype", "its 'floats' are float64"),
        ("huge", "its 'floats' times its weight are too large to be added"),
    ],
)
def test_what_does_not_fit_is_refused_with_name_round_and_reason(
    start: Any, installed: Path, what: str, why: str
) -> None:
    cloud, run_id, config = play(start, installed, {"c trained 3": what, "a asked 1": "print"})
    info = cloud.when(run_id, "finished", seconds=120)
    state, history = outcome(info)
    assert [list(entry["missing"]) for entry in history] == [[], [], ["2"], []]
    assert f"round 3: without c: {why}" in cloud.log(info)
    assert same(state, expected(config, lambda *where: where == (3, 2)))
    assert info.epoch == 0


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
@pytest.mark.parametrize("place", ["server before saving 2", "server saved 2"])
@pytest.mark.parametrize("what", ["kill", "kill server"])
def test_a_killed_server_counts_no_update_twice_and_loses_none(
    start: Any, installed: Path, until: Any, what: str, place: str, method: str
) -> None:
    cloud, run_id, config = play(start, installed, {place: what}, method=method)
    if what == "kill server":
        until(lambda: not cloud.server.is_alive(), 90)
        cloud.up()
        until(lambda: all(cloud.node(n).state == "connected" for n in NODES), 90)
        with cloud.admin() as admin:
            admin.resume(run_id)
    info = cloud.when(run_id, "finished", seconds=120)
    state, history = outcome(info)
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert all(entry["missing"] == {} for entry in history)
    assert same(state, expected(config))
    assert json.loads(info.result_json)["rounds"] == ROUNDS


@pytest.mark.parametrize(("what", "why"), [("raise", "ValueError: the user's own mistake"), ("exit", "exit(3)")])
def test_a_users_mistake_is_told_with_its_line_and_costs_the_node_a_round(
    start: Any, installed: Path, what: str, why: str
) -> None:
    cloud, run_id, config = play(start, installed, {"b asked 2": what}, least=3)
    info = cloud.when(run_id, "finished", seconds=120)
    state, _ = outcome(info)
    assert same(state, expected(config, lambda *where: where == (2, 1)))
    told = next(line for line in cloud.log(info).splitlines() if "round 2: without b" in line)
    assert why in told
    assert "fitting_method.py" in cloud.log(info)
