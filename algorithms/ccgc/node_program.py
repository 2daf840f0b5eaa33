"""The node program: trains as a rank of a group, from a checkpoint to the last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from ...core.control import Control
from ...core.json_text import to_json
from ...core.message import Array
from ...core.seeds import Seed
from ...data.graph_set import Graph
from ...engines.collective.protocol import End
from .baselines import baselines
from .config import CCGCConfig
from .messages import Figures, Finished
from .metrics import METRICS, metrics_of
from .parties import assign_nodes, party_problem
from .problem import Problem, shard
from .projection import project
from .ranks import Alone, GroupRanks, Ranks, Rows
from .selection import LOWER_IS_BETTER, SCORES
from .state_transfer import broadcast_state
from .training import Training

#: Entries of a history that are figures of the run; others, such as ``epoch``, are not.
_FIGURES = (*METRICS, *SCORES, "kmeans_iterations")


class RankGroup(Protocol):
    """A group of ranks; implemented by :class:`~farshore.engines.collective.elastic_groups.ElasticGroup`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def step(self) -> int:
        """Step to start at."""

    @property
    def has_checkpoint(self) -> bool:
        """Whether this rank holds a checkpoint of that step."""

    @property
    def source(self) -> int:
        """A rank that holds it, if others lack it; else -1."""

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Load this rank's checkpoint."""

    def set_step(self, step: int) -> None:
        """Account the following collectives and messages to a step."""

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send a message to the server program."""

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint; may raise because a new group forms."""

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        """Report the end, with the result on one rank."""


def run_rank(config: CCGCConfig, graph: Graph, seed: Seed, group: RankGroup) -> None:
    """Train all epochs from ``group.step`` on; epoch e is accounted to step e + 1, what precedes to step 0."""
    ranks: Ranks = GroupRanks(group.rank, group.size) if group.size > 1 else Alone()
    training = Training(config, _problem(config, graph, seed, ranks), seed, ranks, config.device)
    _restore_or_start(training, group)
    while training.epoch < config.epochs:
        done = training.epoch + 1
        group.set_step(done)
        losses = training.step()
        entry = training.evaluate(losses) if training.evaluates else None
        if group.rank == 0 and (entry is not None or done % config.log_every == 0):
            group.send(Figures(_figures(losses, entry)))
        if done % config.checkpoint_every == 0 and done < config.epochs:
            group.checkpoint(done, training.arrays(), {"history": to_json(training.history)})
    _finish(training, config, group)


def _problem(config: CCGCConfig, graph: Graph, seed: Seed, ranks: Ranks) -> Problem:
    if config.mode == "rows" or ranks.size == 1:
        return shard(graph, config, ranks)
    owner = assign_nodes(graph, ranks.size, config.partition, seed)
    return party_problem(graph, Rows(owner, ranks.rank, ranks.size), config, config.halo, ranks)


def _restore_or_start(training: Training, group: RankGroup) -> None:
    import json

    if not group.step:
        training.start()
        return
    found: tuple[dict[str, Array], str] | None = None
    if group.has_checkpoint:
        arrays, meta = group.load_checkpoint()
        found = arrays, str(meta["history"])
    if group.source >= 0:
        found = broadcast_state(found, group.source, group.rank)
    assert found is not None, "a rank starts at a step of which no rank has a checkpoint"
    training.load(found[0], json.loads(found[1]), group.step)


def _figures(losses: Mapping[str, float], entry: Mapping[str, Any] | None) -> dict[str, float]:
    values = {name: float(value) for name, value in losses.items()}
    if entry is not None:
        values |= {name: float(entry[name]) for name in _FIGURES if name in entry}
    return values


def _finish(training: Training, config: CCGCConfig, group: RankGroup) -> None:
    """Send the result from rank 0; the ranks gather it."""
    problem, labels = training.problem, training.result_labels()
    own = training.selected_embedding()
    embedding = problem.rows.on_first(own, training.ranks)
    table = None if problem.labels is None else training.contingency(labels)
    beside = baselines(training)
    true = None
    if problem.labels is not None and config.mode == "rows":
        true = problem.rows.on_first(torch.from_numpy(problem.labels[:, None]).float(), training.ranks)
    if embedding is None:
        group.finish({}, Finished())
        return
    tensors = {"labels": torch.from_numpy(labels.astype(np.int32)), "embedding": embedding.cpu()}
    tensors |= {f"points.{name}": torch.from_numpy(xy) for name, xy in project(embedding, config.tsne).items()}
    if table is not None:
        tensors["contingency"] = torch.from_numpy(table)
    if true is not None:
        tensors["true"] = true[:, 0].int().cpu()
    weights = {name: value for name, value in training.selected.items() if name.startswith("weights.")}
    tensors |= {name: torch.from_numpy(value) for name, value in weights.items()}
    values = _values(training, config, beside)
    if table is not None:
        values |= metrics_of(table)
    group.finish(tensors, Finished(values))


def _values(training: Training, config: CCGCConfig, beside: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the result without the metrics of the selected clustering; ``row.metric`` are those of another."""
    history = training.history
    chosen = [entry for entry in history if entry.get("selected")][-1]
    values: dict[str, Any] = {"epoch": int(chosen["epoch"]), "nodes": training.problem.rows.nodes}
    values["clusters"] = training.problem.clusters
    values["parameters"] = sum(p.numel() for p in training.encoders.parameters())
    values["inertia_ratio"] = float(chosen["inertia_ratio"])
    if training.problem.labels is None:
        return values
    best = max(history, key=lambda entry: float(entry["acc"]))
    for row, entry in (("last", history[-1]), ("best_oracle", best)):
        values |= {f"{row}.{name}": float(entry[name]) for name in METRICS}
    values |= {f"{row}.{name}": value for row, metrics in beside.items() for name, value in metrics.items()}
    if config.all_rules:
        values |= {f"by_{rule}.acc": _acc_by(rule, history) for rule in SCORES}
    return values


def _acc_by(rule: str, history: list[dict[str, Any]]) -> float:
    sign = -1 if rule in LOWER_IS_BETTER else 1
    return float(max(history, key=lambda entry: sign * float(entry[rule]))["acc"])
