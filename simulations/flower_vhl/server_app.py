"""The server's half: our cohorts, our sums in cohort order, and :meth:`FederatedMethod.finish`, over Flower's grid."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from ...core.errors import RunFailedError
from ...core.message import Tensor
from ...core.seeds import Seed
from ...engines.federated.client_pool import cohort
from ...engines.federated.messages import UpdateError, read_update, update_message
from ...engines.federated.methods import CONTROL, NORMALIZER, FederatedMethod, Update
from ...engines.federated.task_hooks import refine_state
from ...engines.federated.tree import Part, TreeSum
from ...engines.federated.update_validation import validated_contribution
from .learning import learning, part, record, settings_of

app = ServerApp()
_log = logging.getLogger("flwr")

#: Flower's grid cannot be waited for: seconds between two looks at who is there.
_LOOK_SECONDS = 0.5


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    settings, seed = settings_of(context.run_config), int(context.run_config["seed"])
    clients, timeout = int(context.run_config["clients"]), float(context.run_config["timeout"])
    words = settings.model_dump_json()
    known = learning(words, seed, clients, str(context.run_config["data"]))
    told: dict[str, Any] = {"settings": words, "seed": seed, "clients": clients, "virtual-digest": known.digest}
    nodes = _nodes(grid, told, clients, timeout)
    state, history = known.method.start(known.flat), []
    for round_index in range(1, settings.rounds + 1):
        chosen = cohort(Seed(seed), round_index, clients, settings.per_round)
        down = known.method.sent(state)
        config = {**told, "server-round": round_index}
        sgd = {client: asdict(known.task.sgd_of(client, round_index)) for client in chosen}
        sent = [_message(nodes[client], down, config | sgd[client]) for client in chosen]
        replies = grid.send_and_receive(sent, timeout=timeout)
        total, updates = _folded(known.method, down, round_index, [nodes[c] for c in chosen], replies)
        if total is not None and len(updates) >= settings.least:
            state = refine_state(known.task, known.flat, known.method.finish(state, total, clients), round_index)
        entry: dict[str, Any] = {"round": round_index, "cohort": chosen, "replies": len(updates)}
        if round_index % settings.eval_every == 0 or round_index == settings.rounds:
            entry |= known.task.evaluate(known.flat, state)
        history.append(entry)
        _log.info("%s", json.dumps(entry))
    _write(str(context.run_config["out"]), history, state)


def _nodes(grid: Grid, told: dict[str, Any], clients: int, timeout: float) -> list[int]:
    """Numbers of the nodes by their partitions."""
    while len(there := sorted(grid.get_node_ids())) < clients:
        _log.info("waiting for %d of %d nodes", clients - len(there), clients)
        time.sleep(_LOOK_SECONDS)
    asked = [
        Message(RecordDict({"config": ConfigRecord(told)}), node, "query.partition", group_id="0") for node in there
    ]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(asked, timeout=timeout):
        if reply.has_error():
            raise RunFailedError(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
        found[int(_metrics(reply)["partition-id"])] = reply.metadata.src_node_id  # type: ignore[arg-type]
    if sorted(found) != list(range(clients)):
        raise RunFailedError(f"the nodes hold the partitions {sorted(found)}, not 0 to {clients - 1}")
    return [found[client] for client in range(clients)]


def _message(node: int, down: Part, config: dict[str, Any]) -> Message:
    content = RecordDict({"config": ConfigRecord(config)})
    content["arrays"] = record({name: array for name, array in down.items() if name != CONTROL})
    if CONTROL in down:
        content[CONTROL] = record({CONTROL: down[CONTROL]})
    return Message(content, node, "train", group_id=str(config["server-round"]))


def _folded(
    method: FederatedMethod, down: Part, round_index: int, nodes: list[int], replies: Iterable[Message]
) -> tuple[Part | None, list[Update]]:
    """The sum over the cohort, in its order, and what it is a sum of."""
    tree, came = TreeSum(len(nodes)), {reply.metadata.src_node_id: reply for reply in replies}
    updates = []
    for position, node in enumerate(nodes):
        try:
            update = _update(came.get(node), round_index, method.reply(down))
            summand = validated_contribution(method, down, update)
        except UpdateError as error:
            _log.warning("round %d: without node %d: %s", round_index, node, error)
            tree.skip(position)
        else:
            tree.add(position, summand)
            updates.append(update)
    return tree.total(), updates


def _update(reply: Message | None, round_index: int, expected: Part) -> Update:
    if reply is None:
        raise UpdateError("no answer in time")
    if reply.has_error():
        raise UpdateError(str(reply.error.reason))
    metrics, tensors = _metrics(reply), part(*(r for r in reply.content.values() if isinstance(r, ArrayRecord)))
    if NORMALIZER in metrics:
        tensors[NORMALIZER] = np.array([metrics[NORMALIZER]])
    samples, steps, loss = (metrics.get(name) for name in ("num-examples", "steps", "loss"))
    update = Update(tensors, samples, steps, loss)  # type: ignore[arg-type]  # checked as any node's update is
    carried = {name: Tensor(array) for name, array in tensors.items()}
    shapes = {name: (array.shape, array.dtype) for name, array in expected.items()}
    return read_update(update_message(round_index, update, carried), round_index, shapes)


def _metrics(reply: Message) -> MetricRecord:
    found = reply.content["metrics"]
    assert isinstance(found, MetricRecord)
    return found


def _write(out: str, history: list[dict[str, Any]], state: Part) -> None:
    if out:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(json.dumps(history))
        np.savez(folder / "state.npz", **state)  # type: ignore[arg-type]
