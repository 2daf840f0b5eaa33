"""The server's half."""

import json

import numpy as np
from digits_app.task import initial
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Krum,
)

app = ServerApp()


def make_strategy(name, nodes):
    match name:
        case "fedprox":
            return FedProx(proximal_mu=0.5, min_available_nodes=nodes)
        case "fedadam":
            return FedAdam(eta=0.05, tau=1e-3, min_available_nodes=nodes)
        case "krum":
            return Krum(num_malicious_nodes=1, min_available_nodes=nodes)
        case "dp":
            inner = FedAvg(min_available_nodes=nodes)
            return DifferentialPrivacyServerSideFixedClipping(
                inner, noise_multiplier=0.2, clipping_norm=0.5, num_sampled_clients=4
            )
        case _:
            return FedAvg(min_available_nodes=nodes)


@app.main()
def main(grid, context):
    np.random.seed(11)  # the noise of differential privacy comes from the global generator
    strategy = make_strategy(context.run_config["strategy"], context.run_config["nodes"])
    arrays = ArrayRecord({name: Array(values) for name, values in initial().items()})
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=context.run_config["num-server-rounds"],
        timeout=context.run_config["train.timeout"],
    )
    np.savez("final.npz", **{name: array.numpy() for name, array in result.arrays.items()})
    told = {
        "train": {r: dict(m) for r, m in result.train_metrics_clientapp.items()},
        "evaluate": {r: dict(m) for r, m in result.evaluate_metrics_clientapp.items()},
    }
    with open("metrics.json", "w") as file:
        json.dump(told, file)
