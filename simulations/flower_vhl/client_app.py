"""The client's half: :meth:`Method.local` on what its partition holds; what it remembers is in Flower's context."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ...engines.federated.local import Sgd
from ...engines.federated.methods import CONTROL, NORMALIZER
from .learning import Learning, learning, part, record

app = ClientApp()


@app.query("partition")
def partition(message: Message, context: Context) -> Message:
    """Say which partition this is, having made sure of the virtual data."""
    _problem(message, context)
    number = int(context.node_config["partition-id"])
    return Message(RecordDict({"metrics": MetricRecord({"partition-id": number})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    known, config = _problem(message, context), _config(message)
    down = part(*(r for r in message.content.values() if isinstance(r, ArrayRecord)))
    work = known.task.work(known.flat, int(context.node_config["partition-id"]), int(config["server-round"]))
    work.sgd = Sgd(**{name: float(config[name]) for name in ("lr", "momentum", "weight_decay", "mu")})
    kept = context.state.get("memory")
    work.client_state = {
        n: torch.tensor(a) for n, a in part(*([kept] if isinstance(kept, ArrayRecord) else [])).items()
    }
    update = known.method.local(known.flat, down, work)
    context.state["memory"] = record({name: tensor.numpy() for name, tensor in work.client_state.items()})
    metrics = MetricRecord({"num-examples": update.samples, "steps": update.steps, "loss": update.loss})
    if (traveled := update.tensors.pop(NORMALIZER, None)) is not None:
        metrics[NORMALIZER] = float(traveled[0])
    content = RecordDict({"metrics": metrics})
    if (control := update.tensors.pop(CONTROL, None)) is not None:
        content[CONTROL] = record({CONTROL: control})
    content["arrays"] = record(update.tensors)
    return Message(content, reply_to=message)


def _config(message: Message) -> dict[str, Any]:
    found = message.content["config"]
    assert isinstance(found, ConfigRecord)
    return dict(found)


def _problem(message: Message, context: Context) -> Learning:
    """The learning problem that the server means, with the very virtual data that it has."""
    config, data = _config(message), str(context.run_config.get("data", ""))
    known = learning(str(config["settings"]), int(config["seed"]), int(config["clients"]), data)
    if known.digest != config["virtual-digest"]:
        raise ValueError(f"the virtual data made here have the digest {known.digest}, not {config['virtual-digest']}")
    return known
