"""The ServerApp: farshore's cohorts, sums in cohort order and :meth:`FederatedMethod.finish`, over Flower's grid."""

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
from ...core.json_text import to_json
from ...core.message import Tensor
from ...core.seeds import Seed
from ...engines.federated.client_pool import cohort
from ...engines.federated.messages import UpdateError, read_update, update_message
from ...engines.federated.methods import CONTROL, NORMALIZER, FederatedMethod, Update
from ...engines.federated.task_hooks import refine_state
from ...engines.federated.tree import NamedArrays, TreeSum
from ...engines.federated.update_validation import validated_contribution
from .learning import learning_problem, merge_records, record, settings_of

app = ServerApp()
_log = logging.getLogger("flwr")

#: Seconds between queries for connected nodes; Flower's grid has no way to wait for them.
_POLL_SECONDS = 0.5


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and write history and final state to the directory ``out``, if set."""
    settings, seed = settings_of(context.run_config), int(context.run_config["seed"])
    clients, timeout = int(context.run_config["clients"]), float(context.run_config["timeout"])
    settings_json = settings.model_dump_json()
    problem = learning_problem(settings_json, seed, clients, str(context.run_config["data"]))
    shared_config: dict[str, Any] = {
        "settings": settings_json,
        "seed": seed,
        "clients": clients,
        "virtual-digest": problem.digest,
    }
    nodes = _nodes(grid, shared_config, clients, timeout)
    state, history = problem.method.start(problem.flat), []
    for round_index in range(1, settings.rounds + 1):
        cohort_clients = cohort(Seed(seed), round_index, clients, settings.per_round)
        down = problem.method.sent(state)
        config = {**shared_config, "server-round": round_index}
        sgd = {client: asdict(problem.task.sgd_of(client, round_index)) for client in cohort_clients}
        messages = [_message(nodes[client], down, config | sgd[client]) for client in cohort_clients]
        replies = grid.send_and_receive(messages, timeout=timeout)
        total, updates = _add_up(problem.method, down, round_index, [nodes[c] for c in cohort_clients], replies)
        if total is not None and len(updates) >= settings.least:
            state = refine_state(problem.task, problem.flat, problem.method.finish(state, total, clients), round_index)
        entry: dict[str, Any] = {"round": round_index, "cohort": cohort_clients, "replies": len(updates)}
        if round_index % settings.eval_every == 0 or round_index == settings.rounds:
            entry |= problem.task.evaluate(problem.flat, state)
        history.append(entry)
        _log.info("%s", json.dumps(entry))
    _write(str(context.run_config["out"]), history, state)


def _nodes(grid: Grid, shared_config: dict[str, Any], clients: int, timeout: float) -> list[int]:
    """Wait for all nodes and return their ids in the order of their partitions."""
    while len(node_ids := sorted(grid.get_node_ids())) < clients:
        _log.info("waiting for %d of %d nodes", clients - len(node_ids), clients)
        time.sleep(_POLL_SECONDS)
    queries = [
        Message(RecordDict({"config": ConfigRecord(shared_config)}), node, "query.partition", group_id="0")
        for node in node_ids
    ]
    node_of_partition: dict[int, int] = {}
    for reply in grid.send_and_receive(queries, timeout=timeout):
        if reply.has_error():
            raise RunFailedError(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
        node_of_partition[int(_metrics(reply)["partition-id"])] = reply.metadata.src_node_id  # type: ignore[arg-type]
    if sorted(node_of_partition) != list(range(clients)):
        raise RunFailedError(f"the nodes hold the partitions {sorted(node_of_partition)}, not 0 to {clients - 1}")
    return [node_of_partition[client] for client in range(clients)]


def _message(node: int, down: NamedArrays, config: dict[str, Any]) -> Message:
    content = RecordDict({"config": ConfigRecord(config)})
    content["arrays"] = record({name: array for name, array in down.items() if name != CONTROL})
    if CONTROL in down:
        content[CONTROL] = record({CONTROL: down[CONTROL]})
    return Message(content, node, "train", group_id=str(config["server-round"]))


def _add_up(
    method: FederatedMethod, down: NamedArrays, round_index: int, nodes: list[int], replies: Iterable[Message]
) -> tuple[NamedArrays | None, list[Update]]:
    """Return the sum of the contributions in cohort order, and the updates that were added."""
    tree, reply_of_node = TreeSum(len(nodes)), {reply.metadata.src_node_id: reply for reply in replies}
    updates = []
    for position, node in enumerate(nodes):
        try:
            update = _update(reply_of_node.get(node), round_index, method.reply(down))
            contribution = validated_contribution(method, down, update)
        except UpdateError as error:
            _log.warning("round %d: the update of node %d is not used: %s", round_index, node, error)
            tree.skip(position)
        else:
            tree.add(position, contribution)
            updates.append(update)
    return tree.total(), updates


def _update(reply: Message | None, round_index: int, expected: NamedArrays) -> Update:
    if reply is None:
        raise UpdateError("no reply within the timeout")
    if reply.has_error():
        raise UpdateError(str(reply.error.reason))
    metrics, tensors = (
        _metrics(reply),
        merge_records(*(r for r in reply.content.values() if isinstance(r, ArrayRecord))),
    )
    if NORMALIZER in metrics:
        tensors[NORMALIZER] = np.array([metrics[NORMALIZER]])
    samples, steps, loss = (metrics.get(name) for name in ("num-examples", "steps", "loss"))
    update = Update(tensors, samples, steps, loss)  # type: ignore[arg-type]  # checked by read_update
    encoded = {name: Tensor(array) for name, array in tensors.items()}
    shapes = {name: (array.shape, array.dtype) for name, array in expected.items()}
    return read_update(update_message(round_index, update, encoded), round_index, shapes)


def _metrics(reply: Message) -> MetricRecord:
    metrics = reply.content["metrics"]
    assert isinstance(metrics, MetricRecord)
    return metrics


def _write(out: str, history: list[dict[str, Any]], state: NamedArrays) -> None:
    if out:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.json").write_text(to_json(history))
        np.savez(folder / "state.npz", **state)  # type: ignore[arg-type]
