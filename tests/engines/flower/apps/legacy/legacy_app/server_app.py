"""A ServerApp made of a function that returns its parts."""

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from legacy_app.task import initial


class Saving(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        weight, bias = parameters_to_ndarrays(parameters)
        np.savez("legacy.npz", weight=weight, bias=bias)
        return parameters, metrics


def server_fn(context):
    strategy = Saving(min_available_clients=4, initial_parameters=ndarrays_to_parameters(list(initial().values())))
    return ServerAppComponents(
        strategy=strategy, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    )


app = ServerApp(server_fn=server_fn)
