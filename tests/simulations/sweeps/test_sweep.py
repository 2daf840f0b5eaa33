"""A sweep in process: the same results as single runs, whatever the nodes; failures, halving, and its files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.core.errors import ConfigError
from farshore.core.workloads import load
from farshore.simulations.clock import Devices
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.node_simulation import NodeSimulation
from farshore.simulations.sweeps.summary import CSV, TABLE

SWEEP = load("sweep")
PING = {"method": "ping", "settings": {"kilobytes": 2}, "grid": {"rounds": [1, 2]}, "seeds": [0, 1]}
TRAIN = {"model": "mlp", "steps": 6, "batch": 16, "train_samples": 160, "log_every": 1}
TRAINING = {"method": "data_parallel", "settings": TRAIN, "grid": {"lr": [0.01, 0.1]}, "seeds": [0, 1]}


def sweep(folder: Path, *nodes: str, name: str = "run", **settings: Any) -> InProcessRun:
    return InProcessRun(SWEEP, SWEEP.config.model_validate(settings), folder / name, nodes or ("a",))


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result["table"]["rows"]
    return found


def test_an_item_has_the_result_of_a_run_with_its_seed(tmp_path: Path) -> None:
    found = rows(sweep(tmp_path, **PING).run())
    assert [(row["cell"]["rounds"], row["seed"]) for row in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    ping = load("ping")
    for row in found:
        config = ping.config(rounds=row["cell"]["rounds"], kilobytes=2)
        alone = NodeSimulation(ping, config, tmp_path / f"{row['cell']}{row['seed']}", {"node-1": "node"}, row["seed"])
        assert row["metrics"]["checksum"] == alone.run()["checksum"]
    assert len({row["metrics"]["checksum"] for row in found}) == 4


@pytest.mark.slow
def test_training_has_the_same_bits_on_one_two_and_four_nodes_and_with_a_node_killed(tmp_path: Path) -> None:
    one = sweep(tmp_path, name="one", **TRAINING).run()
    assert all(0 < row["metrics"]["loss"] < 10 for row in rows(one))
    assert len({row["metrics"]["loss"] for row in rows(one)}) == 4
    for nodes in ("ab", "abcd"):
        assert sweep(tmp_path, *nodes, name=nodes, **TRAINING).run()["table"] == one["table"]
    troubled = sweep(tmp_path, "a", "b", name="troubled", **TRAINING)
    pending = ["a"]
    troubled.on_progress = lambda done, total, values: troubled.kill(pending.pop()) if done and pending else None
    assert troubled.run()["table"] == one["table"]


def test_a_worker_process_that_dies_fails_its_item_only(
    tmp_path: Path, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed once; the second attempt of the item gets a new one."""
    run = sweep(tmp_path, **{**PING, "settings": {"kilobytes": 2, "pause_ms": 150}})
    killed: list[int] = []

    def on_progress(done: int, total: int, values: Any) -> None:
        if done == 1 and not killed:
            found = psutil.Process().children(recursive=True)
            (worker,) = [p for p in found if "worker_process" in " ".join(p.cmdline())]
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    logged: list[str] = []
    run.on_progress, run.on_log = on_progress, logged.append
    result = run.run()
    assert killed
    assert result["failed_items"] == 0
    assert any("the worker process died (signal 9)" in line for line in logged)
    assert len(rows(result)) == 4


def test_items_that_fail_are_listed_with_their_cause_and_the_others_have_results(tmp_path: Path) -> None:
    """A data set that nobody has is found missing only by the method itself."""
    settings = {**TRAIN, "dataset": "digits"}
    config = {**TRAINING, "settings": settings, "grid": {"dataset": ["digits", "cifar10"]}, "seeds": [0], "tries": 1}
    result = sweep(tmp_path, **config).run()
    assert (result["items"], result["failed_items"]) == (2, 1)
    good, bad = rows(result)
    assert good["metrics"]["loss"] > 0
    assert "no data set" in bad["error"]
    assert "--data cifar10=PATH" in bad["error"]
    assert result["why"] == bad["error"]


@pytest.mark.slow
def test_halving_goes_on_with_the_better_half(tmp_path: Path) -> None:
    settings = {name: value for name, value in TRAIN.items() if name != "steps"}
    config = {**TRAINING, "settings": settings, "grid": {"lr": [1e-6, 0.05, 0.1, 2e-6]}, "seeds": [0]}
    result = sweep(tmp_path, "a", "b", **config, metric="loss", halving="epochs=1..4").run()
    reached = [(row["budget"], row["cell"]["lr"]) for row in rows(result)]
    assert reached[:4] == [(1, 1e-6), (1, 0.05), (1, 0.1), (1, 2e-6)]
    assert reached[4:6] == [(2, 0.05), (2, 0.1)]
    assert len(reached) == 7
    assert result["best_cell"]["lr"] == reached[6][1]


def test_a_sweep_leaves_a_table_a_csv_and_a_resumable_directory(tmp_path: Path) -> None:
    config = SWEEP.config.model_validate({**PING, "slots": 2})
    result = NodeSimulation(SWEEP, config, tmp_path / "sweep", {"local": "node"}).run()
    lines = (tmp_path / "sweep" / CSV).read_text().splitlines()
    assert lines[0] == "rounds,seed,checksum,error,node,seconds"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "0"], ["1", "1"], ["2", "0"], ["2", "1"]]
    table = json.loads((tmp_path / "sweep" / TABLE).read_text())
    assert [row["metrics"] for row in table["rows"]] == [row["metrics"] for row in rows(result)]
    assert NodeSimulation(SWEEP, config, tmp_path / "sweep", {"local": "node"}).run() == json.loads(json.dumps(result))


def test_a_sweep_has_no_simulated_time(tmp_path: Path) -> None:
    devices = Devices(population="wifi-laptops", seconds_per_step=0.01)
    config = SWEEP.config.model_validate(PING)
    with pytest.raises(ConfigError, match="'sweep' has no simulated time"):
        NodeSimulation(SWEEP, config, tmp_path / "run", {"a": "node"}, devices=devices).run()
