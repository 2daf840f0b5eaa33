"""The server's half."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Krum,
)

from digits_app.task import initial

app = ServerApp()


def make_strategy(name, nodes):
    all_of_them = {"min_train_nodes": nodes, "min_evaluate_nodes": nodes, "min_available_nodes": nodes}
    match name:
        case "fedprox":
            return FedProx(proximal_mu=0.5, **all_of_them)
        case "fedadam":
            return FedAdam(eta=0.05, tau=1e-3, **all_of_them)
        case "krum":
            return Krum(num_malicious_nodes=1, **all_of_them)
        case "dp":
            inner = FedAvg(**all_of_them)
            return DifferentialPrivacyServerSideFixedClipping(
                inner, noise_multiplier=0.2, clipping_norm=0.5, num_sampled_clients=nodes
            )
        case "fedavg":
            return FedAvg(**all_of_them)
    raise KeyError(f"no such strategy: {name}")


@app.main()
def main(grid, context):
    np.random.seed(11)  # the noise of differential privacy comes from the global generator
    history = {}
    for name in context.run_config["strategies"].split(","):
        arrays = ArrayRecord({key: Array(values) for key, values in initial().items()})
        result = make_strategy(name, context.run_config["nodes"]).start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=context.run_config["num-server-rounds"],
            timeout=context.run_config["train.timeout"],
        )
        np.savez(f"{name}.npz", **{key: array.numpy() for key, array in result.arrays.items()})
        rounds = result.train_metrics_clientapp, result.evaluate_metrics_clientapp
        history[name] = [{number: dict(metrics) for number, metrics in by_round.items()} for by_round in rounds]
    Path("metrics.json").write_text(json.dumps(history))
