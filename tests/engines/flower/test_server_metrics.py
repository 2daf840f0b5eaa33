"""What a ServerApp evaluates itself, list metrics, requirements, and clients that sleep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farshore.cli.main import execute
from farshore.engines.flower.requirements import differences
from farshore.runs.directory import RunDirectory
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
pytestmark = pytest.mark.timeout(120)

PROJECT = """
[project]
name = "small-app"
version = "1.0.0"
dependencies = ["flwr>=1.41", "numpy==0.1", "no-such-package-at-all>=3", "psutil>=5", "win; sys_platform == 'win32'"]
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"
[tool.flwr.app.config]
num-server-rounds = 2
sleep = 0.0
timeout = 60.0
"""
SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    def evaluate(server_round, arrays):
        return MetricRecord({"accuracy": 0.25 * server_round, "per_class": [0.5, float(server_round)]})

    FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3).start(
        grid=grid,
        initial_arrays=ArrayRecord({"w": Array(np.zeros(2, np.float32))}),
        num_rounds=context.run_config["num-server-rounds"],
        timeout=context.run_config["timeout"],
        evaluate_fn=evaluate,
    )
"""
CLIENT = """
import random
import time

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    part = context.node_config["partition-id"]
    random.seed(part)
    if part == 0:
        time.sleep(context.run_config["sleep"])
    drawn = random.random()
    metrics = MetricRecord({"num-examples": 1 + part, "errors": [float(part), 1.0], "drawn": drawn, "loss": 0.5})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)
"""
LEGACY_SERVER = """
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def server_fn(context):
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_available_clients=3,
        initial_parameters=ndarrays_to_parameters([np.zeros(2, np.float32)]),
        evaluate_fn=lambda server_round, arrays, config: (1.0 / (1 + server_round), {"accuracy": 0.25 * server_round}),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


app = ServerApp(server_fn=server_fn)
"""
LEGACY_CLIENT = """
from flwr.client import ClientApp, NumPyClient


class Client(NumPyClient):
    def fit(self, parameters, config):
        return parameters, 1, {}


app = ClientApp(client_fn=lambda context: Client().to_client())
"""


def make_app(folder: Path, server: str = SERVER, client: str = CLIENT) -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "server_app.py").write_text(server)
    (folder / "client_app.py").write_text(client)
    return folder


def simulated(folder: Path, app: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    result = simulate_app(flower_run(app, changes), folder, 3)
    return result, list(RunDirectory.open(folder).read_metrics())


def test_evaluations_and_lists_are_in_the_result_and_in_the_metrics(tmp_path: Path) -> None:
    result, metrics = simulated(tmp_path / "run", make_app(tmp_path / "app"))
    assert result["metrics"]["server_accuracy"] == 0.5
    assert (result["metrics"]["server_per_class_0"], result["metrics"]["server_per_class_1"]) == (0.5, 2.0)
    # Weighted by examples: (1·0 + 2·1 + 3·2) / 6.
    assert result["metrics"]["train_errors_0"] == pytest.approx(8 / 6)
    assert result["metrics"]["train_errors_1"] == 1.0
    evaluations = [(line["step"], line["server_accuracy"]) for line in metrics if "server_accuracy" in line]
    assert evaluations == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert RunDirectory.open(tmp_path / "run").result == result


def test_evaluations_of_the_legacy_interface_are_kept_too(tmp_path: Path) -> None:
    result, metrics = simulated(tmp_path / "run", make_app(tmp_path / "app", LEGACY_SERVER, LEGACY_CLIENT))
    assert result["metrics"]["server_accuracy"] == 0.5
    assert result["metrics"]["server_loss"] == pytest.approx(1 / 3)
    assert [line["step"] for line in metrics if "server_loss" in line] == [0, 1, 2]


def test_a_client_that_sleeps_does_not_hold_up_the_others(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    # Three seconds until the strategy gives up: the sleeper's reply is late, and the two behind it must be in time.
    simulated(tmp_path / "slow", app, sleep=6.0, timeout=3.0, **{"num-server-rounds": 1})
    log = (tmp_path / "slow" / "log.txt").read_text()
    assert "Received 2 results" in log, log[-2000:]
    awake, _ = simulated(tmp_path / "awake", app, sleep=0.0, **{"num-server-rounds": 1})
    asleep, _ = simulated(tmp_path / "asleep", app, sleep=0.5, **{"num-server-rounds": 1})
    # A sleeper finds the global generators as it left them.
    assert asleep["metrics"]["train_drawn"] == awake["metrics"]["train_drawn"]


def test_requirements_that_are_not_met_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app(tmp_path / "app")
    assert execute(["apps", "hash", str(app)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == flower_run(app, {}).digest
    assert "the app asks for 'numpy==0.1'" in err
    assert "no-such-package-at-all is not installed" in err
    assert "psutil" not in err
    assert "flwr" not in err
    assert execute(["apps", "hash", str(app), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == flower_run(app, {}).digest
    simulated(tmp_path / "run", app)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the server: no-such-package-at-all is not installed" in log
    assert "client-2: numpy" in log
    assert execute(["apps", "hash", str(tmp_path)]) == 10


def test_requirements_in_any_form() -> None:
    assert differences(["numpy", "numpy>=1.0,<99", "not a requirement!!", "win; sys_platform == 'win32'"]) == []
    assert len(differences([f"no-such-package-{i}" for i in range(30)])) == 11
