"""Run the work on Flower's simulation engine, in its own environment: ``flower_side.py WORK IMAGES [defaults]``."""

from __future__ import annotations

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import Work, build, images, local_sgd, stamp

WORK, FOLDER = Work.loads(sys.argv[1]), sys.argv[2]
client_app, server_app = ClientApp(), ServerApp()
_models: dict[str, torch.nn.Module] = {}


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client; the model is built once per process."""
    torch.set_num_threads(1)
    arrays = message.content["arrays"]
    model = _models.setdefault("model", build(WORK))
    model.load_state_dict(arrays.to_torch_state_dict())
    first, count = WORK.window(int(context.node_config["partition-id"]))
    x, y = images(FOLDER, WORK)
    local_sgd(model, x[first : first + count], y[first : first + count], WORK.batch, WORK.lr)
    arrays = ArrayRecord(model.state_dict())
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": count})})
    return Message(content, reply_to=message)


class StampedFedAvg(FedAvg):
    """FedAvg that signals the start of the second round."""

    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 2:
            stamp("begun")
        return super().configure_train(server_round, arrays, config, grid)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    share = WORK.cohort / WORK.clients
    counts = {"min_train_nodes": WORK.cohort, "min_available_nodes": WORK.clients}
    strategy = StampedFedAvg(fraction_train=share, fraction_evaluate=0.0, **counts)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(build(WORK).state_dict()), num_rounds=WORK.rounds + 1)
    stamp("ended")


if __name__ == "__main__":
    resources = {} if "defaults" in sys.argv else {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, WORK.clients, backend_config={**resources, "init_args": {"num_cpus": 2}})
