"""The client's half."""

import os
import time

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import load_part, train

app = ClientApp()


@app.train()
def fit(message, context):
    part, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    config = message.content["config"]
    visits = context.state.setdefault("visits", MetricRecord({"count": 0}))
    visits["count"] += 1
    if part == 1 and context.run_config["fault"] == "raise":
        raise ValueError("this client cannot train")
    if part == 1 and context.run_config["fault"] == "die" and config["server-round"] == 2:
        os._exit(9)
    if part == 1 and context.run_config["fault"] == "hang":
        time.sleep(5)
    x, y = load_part(part, count)
    record = message.content["arrays"]
    state = {name: array.numpy() for name, array in record.items()}
    steps, mu = context.run_config["train.local-steps"], config.get("proximal-mu", 0.0)
    state, loss = train(state, x, y, steps, context.run_config["lr"], mu)
    metrics = MetricRecord({"num-examples": len(y), "loss": loss, "visits": visits["count"]})
    content = RecordDict({"arrays": ArrayRecord({n: _array(a) for n, a in state.items()}), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message, context):
    x, y = load_part(context.node_config["partition-id"], context.node_config["num-partitions"])
    state = {name: array.numpy() for name, array in message.content["arrays"].items()}
    right = float(((x @ state["weight"] + state["bias"]).argmax(1) == y).mean())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": len(y), "acc": right})}), reply_to=message)


def _array(values):
    from flwr.app import Array

    return Array(values)
