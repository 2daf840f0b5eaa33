"""The ClientApp: :meth:`FederatedMethod.local` on the node's partition, with the client state in Flower's context."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ...engines.federated.local import Sgd
from ...engines.federated.methods import CONTROL, NORMALIZER
from .learning import LearningProblem, learning_problem, merge_records, record

app = ClientApp()


@app.query("partition")
def partition(message: Message, context: Context) -> Message:
    """Reply with the node's partition id, after checking that its virtual data are the server's."""
    _problem(message, context)
    partition_id = int(context.node_config["partition-id"])
    return Message(RecordDict({"metrics": MetricRecord({"partition-id": partition_id})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the node's partition for one round."""
    problem, config = _problem(message, context), _config(message)
    down = merge_records(*(r for r in message.content.values() if isinstance(r, ArrayRecord)))
    work = problem.task.work(problem.flat, int(context.node_config["partition-id"]), int(config["server-round"]))
    work.sgd = Sgd(**{name: float(config[name]) for name in ("lr", "momentum", "weight_decay", "mu")})
    saved = context.state.get("memory")
    saved_arrays = merge_records(saved) if isinstance(saved, ArrayRecord) else {}
    work.client_state = {name: torch.tensor(array) for name, array in saved_arrays.items()}
    update = problem.method.local(problem.flat, down, work)
    context.state["memory"] = record({name: tensor.numpy() for name, tensor in work.client_state.items()})
    metrics = MetricRecord({"num-examples": update.samples, "steps": update.steps, "loss": update.loss})
    if (normalizer := update.tensors.pop(NORMALIZER, None)) is not None:
        metrics[NORMALIZER] = float(normalizer[0])
    content = RecordDict({"metrics": metrics})
    if (control := update.tensors.pop(CONTROL, None)) is not None:
        content[CONTROL] = record({CONTROL: control})
    content["arrays"] = record(update.tensors)
    return Message(content, reply_to=message)


def _config(message: Message) -> dict[str, Any]:
    settings = message.content["config"]
    assert isinstance(settings, ConfigRecord)
    return dict(settings)


def _problem(message: Message, context: Context) -> LearningProblem:
    """Build the server's learning problem.

    Raises
    ------
    ValueError
        The virtual data generated here differ from the server's.
    """
    config, data = _config(message), str(context.run_config.get("data", ""))
    problem = learning_problem(str(config["settings"]), int(config["seed"]), int(config["clients"]), data)
    if problem.digest != config["virtual-digest"]:
        expected = config["virtual-digest"]
        raise ValueError(f"the virtual data generated here have the digest {problem.digest}, expected {expected}")
    return problem
