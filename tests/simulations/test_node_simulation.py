"""Simulations of workloads on virtual nodes: repeatable times, resumed runs, roles, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import ConfigError, RunCancelledError
from farshore.core.nodes import Role
from farshore.core.workloads import load
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from farshore.simulations.clock import Devices
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.node_simulation import NodeSimulation
from farshore.simulations.virtual_nodes import ONLY_ROLE, check_config, check_devices, check_simulated, virtual_nodes

pytestmark = pytest.mark.timeout(120)

NODES = {"node-1": "node", "node-2": "node", "node-3": "node"}
KFAC = {"model": "mlp", "steps": 12, "batch": 8, "checkpoint_every": 4, "log_every": 4}


def simulation(directory: Path, method: str = "dp_kfac", devices: str = "wifi-laptops", **settings: Any) -> Any:
    workload = load(method)
    config = workload.config.model_validate(settings or KFAC)
    given = Devices(population=devices, seconds_per_step=0.02)
    return NodeSimulation(workload, config, directory, NODES, seed=3, devices=given)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ping", {"rounds": 4}),
        ("dp_kfac", KFAC),
        # More than one bucket of gradients, which fill the window of a channel.
        ("data_parallel", {"model": "resnet18", "steps": 3, "batch": 2, "train_samples": 60}),
        ("data_parallel", {**KFAC, "compression": "fp16"}),
    ],
    ids=["ping", "kfac", "buckets", "fp16"],
)
def test_virtual_times_are_the_same_in_every_run(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    results = [simulation(tmp_path / str(n), method, **settings).run() for n in range(3)]
    assert results[0]["simulated_time"]["seconds"] > 0.1
    assert results[0]["simulated_time"] == results[1]["simulated_time"] == results[2]["simulated_time"]
    times = [
        [line["simulated_seconds"] for line in RunDirectory.open(tmp_path / str(n)).read_metrics()] for n in range(3)
    ]
    assert times[0] == times[1] == times[2]


def test_devices_change_the_time_and_nothing_else(tmp_path: Path) -> None:
    laptops, phones = (simulation(tmp_path / name, devices=name).run() for name in ("wifi-laptops", "phones-4g"))
    assert phones.pop("simulated_time")["seconds"] > 2 * laptops.pop("simulated_time")["seconds"]
    assert laptops == phones
    rows: list[Any] = []
    workload = load("dp_kfac")
    config = workload.config.model_validate(KFAC)
    plain = InProcessRun(workload, config, tmp_path / "plain", tuple(NODES), 3, recorder=rows.append).run()
    assert plain == laptops
    ledger = RunDirectory.open(tmp_path / "phones-4g").read_ledger().to_pylist()
    names = ("node", "direction", "kind", "step", "micro", "payload_bytes", "frame_bytes")
    assert sorted(tuple(getattr(row, n) for n in names) for row in rows) == sorted(
        tuple(row[n] for n in names) for row in ledger
    )


def test_a_cancelled_simulation_resumes_to_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    whole, stopped = simulation(tmp_path / "whole"), simulation(tmp_path / "stopped")
    whole_result = whole.run()

    def cancel(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done == 8:
            stopped.cancelled.set()

    stopped.on_progress = cancel
    with pytest.raises(RunCancelledError):
        stopped.run()
    assert RunDirectory.open(tmp_path / "stopped").result is None
    result = simulation(tmp_path / "stopped").run()
    mine, other = (load_state(tmp_path / name / "states" / "last.safetensors")[0] for name in ("whole", "stopped"))
    assert all(np.array_equal(mine[name], other[name]) for name in mine)
    begun = {line["simulated_seconds"] for line in RunDirectory.open(tmp_path / "stopped").read_metrics()}
    assert min(begun) > 0
    # The clocks go on from the checkpoint; the restart exchanges a few messages more.
    seconds = whole_result.pop("simulated_time")["seconds"]
    assert seconds < result.pop("simulated_time")["seconds"] < 1.3 * seconds
    assert result["accuracy"] == whole_result["accuracy"]
    # A finished run is not repeated, and a run with other settings not continued.
    assert simulation(tmp_path / "stopped").run()["accuracy"] == result["accuracy"]
    with pytest.raises(ConfigError, match="differs in config"):
        simulation(tmp_path / "stopped", **{**KFAC, "steps": 16}).run()


class Cameras:
    """A workload with two roles."""

    name = "cameras"

    def roles(self, config: Any) -> tuple[Role, ...]:
        return Role("lidar"), Role("camera", 2), Role("radar", 0)


def test_nodes_are_as_many_as_asked_for_or_as_the_roles_say() -> None:
    workload: Any = Cameras()
    default = {"lidar-1": "lidar", "camera-1": "camera", "camera-2": "camera"}
    assert virtual_nodes(workload, None, {}) == default
    assert virtual_nodes(workload, None, {"camera": 1, "radar": 1}) == {
        "lidar-1": "lidar",
        "camera-1": "camera",
        "radar-1": "radar",
    }
    assert virtual_nodes(load("ping"), load("ping").config(), {ONLY_ROLE: 2}) == {"node-1": "node", "node-2": "node"}
    for counts, message in [
        ({"sonar": 1}, "no role 'sonar'"),
        ({ONLY_ROLE: 2}, "has the roles"),
        (
            {"lidar": 0, "camera": 0},
            "no nodes",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            virtual_nodes(workload, None, counts)


def test_what_cannot_be_simulated_is_refused_with_what_to_do() -> None:
    for method, hint in [("flower", "farshore simulate FOLDER"), ("split_segment", "farshore server up")]:
        with pytest.raises(ConfigError, match=hint):
            check_simulated(load(method))
    with pytest.raises(ConfigError, match="transport=star"):
        check_config(load("dp_kfac").config(transport="peers"))
    with pytest.raises(ConfigError, match="'deadline' is for methods that are federated"):
        check_devices(Devices(population="phones-4g", seconds_per_step=1, deadline=3), federated=False)
    with pytest.raises(ConfigError, match="not federated"):
        check_devices(
            Devices(population="phones-4g", seconds_per_step=1, seconds_per_message={"update": 1}), federated=True
        )


def test_programs_log_and_their_clocks_are_in_the_run_directory(tmp_path: Path) -> None:
    simulation(tmp_path / "run").run()
    assert "3 ranks from step 0" in (tmp_path / "run" / "log.txt").read_text()
    clocks = [json.loads(line) for line in (tmp_path / "run" / "clocks.jsonl").read_text().splitlines()]
    assert {(line["program"], line["step"]) for line in clocks} == {(p, s) for p in ("server", *NODES) for s in (4, 8)}
