"""Flower's own SecAgg+ workflow, with a client that falls asleep before it uploads: only this one is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.runs.directory import RunDirectory
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(240)]

CLIENTS, ROUNDS = 5, 2
PROJECT = """
[project]
name = "secret-sums"
version = "1.0.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"
[tool.flwr.app.config]
num-server-rounds = 2
timeout = 10.0
"""
SERVER = """
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD

app = ServerApp()


@app.main()
def main(grid, context):
    settings = context.run_config
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=settings["num-server-rounds"]),
        strategy=FedAvg(
            min_fit_clients=5,
            min_available_clients=5,
            fraction_evaluate=0.0,
            initial_parameters=ndarrays_to_parameters([np.zeros(3, np.float32)]),
        ),
    )
    secure = SecAggPlusWorkflow(
        num_shares=3, reconstruction_threshold=2, max_weight=1, timeout=settings["timeout"]
    )
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
    np.save("mean.npy", legacy.state[MAIN_PARAMS_RECORD].to_numpy_ndarrays()[0])
"""
CLIENT = """
import time

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod


class Client(NumPyClient):
    def __init__(self, part, seconds):
        self.part, self.seconds = part, seconds

    def fit(self, parameters, config):
        if self.part == 0:
            time.sleep(self.seconds)
        return [np.full(3, float(self.part), np.float32)], 1, {}


def client_fn(context):
    return Client(context.node_config["partition-id"], context.run_config["timeout"] + 2.0).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
"""
#: Mean of the parts 1 to 4: the sleeper's is missing, and nobody else's.
EXPECTED = (1 + 2 + 3 + 4) / 4


@pytest.fixture
def config(tmp_path: Path) -> Any:
    app = tmp_path / "app"
    app.mkdir()
    for name, text in {"pyproject.toml": PROJECT, "server_app.py": SERVER, "client_app.py": CLIENT}.items():
        (app / name).write_text(text)
    return flower_run(app, {"num-server-rounds": ROUNDS})


def _check(directory: Path) -> None:
    mean = np.load(directory / "mean.npy")
    # The workflow quantizes [-8, 8] to 22 bits, stochastically.
    np.testing.assert_allclose(mean, EXPECTED, atol=1e-4)
    assert RunDirectory.open(directory).result is not None


def test_simulated_nodes(config: Any, tmp_path: Path) -> None:
    simulate_app(config, tmp_path / "run", CLIENTS)
    _check(tmp_path / "run")


def test_real_nodes(cloud: Any, config: Any) -> None:
    cloud.join(*(f"client-{i}" for i in range(CLIENTS)), accept_apps=frozenset({config.digest}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=CLIENTS), "finished")
    assert json.loads(info.result_json)["messages"] > 0
    _check(Path(info.directory))
