"""The traffic plan of a training run, from dry runs of each rank and each kind of step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...core.message import Message
from ...core.traffic_plan import Flow, IndexArray, PeerFlow, Setting, TrafficPlan, handshake_flows
from ..collective.dry_run import Sent, replies
from ..collective.protocol import Done, Form, Go, Kept, Moved, Ready
from .baseline import baselines
from .config import TrainingConfig
from .dry_run import DryRun
from .loop import evaluates, logs
from .protocol import Trained
from .workload import TrainingWorkload


def plan_run(workload: TrainingWorkload[Any], config: TrainingConfig, setting: Setting) -> TrafficPlan:
    """Plan the messages of a run; see :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`.

    Collectives are exact. Control messages are exact to a few bytes, since their values are placeholders.

    Raises
    ------
    ConfigError
        Figures are assumed: the plan needs the data.
    DataError
        The data are missing.
    """
    if setting.assumed:
        raise ConfigError("a training run is estimated from its data", hint="use --data NAME=PATH, not --assume")
    run = DryRun(workload, config, setting)
    flows, peers = [*handshake_flows(setting.nodes), *_control_flows(config, run, setting.nodes)], []
    for step, steps in run.groups.items():
        sent, indices = run.sent[step], np.array(steps, np.int64)
        if run.transport == "peers":
            peers += list(_peer_flows(sent, indices))
            flows += [_flow("up", _moved(size), rank, indices) for rank, size in enumerate(sent) if size]
        else:
            flows += list(_star_flows(sent, indices))
    plain = baselines([(0, run.size, run.transport)], run.total_steps, run.parameters)
    return TrafficPlan("step", setting.nodes, flows, _notes(config, run.size), plain, peers)


def _notes(config: TrainingConfig, size: int) -> list[str]:
    notes = []
    if config.transport == "auto" and size > 1:
        notes.append("all traffic is assumed to go through the server; for node-to-node traffic: --set transport=peers")
    if config.early_stop:
        notes.append("an upper bound: the run is assumed not to stop early")
    if config.keep_best and config.eval_every:
        notes.append("an upper bound: every evaluation is assumed to be better than those before")
    if config.preconditioner != "none" and config.precision == "fp16":
        notes.append("the preconditioner sends more if the first steps overflow in fp16")
    return notes


def _control_flows(config: TrainingConfig, run: DryRun, names: Sequence[str]) -> Iterator[Flow]:
    """Yield the control messages: forming the group, figures of rank 0, checkpoints and the end."""
    ranks = range(run.size)
    yield Flow.of("up", Ready((), listens=run.transport == "peers").message(), ranks)
    for rank in ranks:
        yield Flow.of("down", Form(1, rank, tuple(names), 0, -1, run.transport).message(), [rank])
    yield Flow.of("up", run.figures, [0], run.steps_that(logs))
    evaluated = run.steps_that(evaluates)
    yield Flow.of("up", run.evaluation, [0], evaluated)
    if config.keep_best:
        yield Flow.of("up", run.best, [0], evaluated)
    checkpoints = range(config.checkpoint_every, run.total_steps, config.checkpoint_every)
    yield Flow.of("up", Kept().message(), ranks, checkpoints)
    yield Flow.of("down", Go().message(), np.tile(ranks, len(checkpoints)))
    yield Flow.of("up", run.end, [0], run.total_steps)
    yield Flow.of("up", Trained().message(), ranks[1:], run.total_steps)
    yield Flow.of("down", Done().message(), ranks)


def _star_flows(sent: Sequence[Sent], indices: IndexArray) -> Iterator[Flow]:
    """Yield the collectives through the server: requests and replies of each rank."""
    requests = [messages for messages in sent if isinstance(messages, list)]
    for direction, by_rank in (("up", requests), ("down", replies(requests))):
        for rank, messages in enumerate(by_rank):
            for message in messages:
                yield _flow(direction, message, rank, indices)


def _peer_flows(sent: Sequence[Sent], indices: IndexArray) -> Iterator[PeerFlow]:
    """Yield the bytes that each rank sends to other nodes, by kind."""
    for rank, sizes in enumerate(sent):
        assert isinstance(sizes, dict)
        for kind, size in sizes.items():
            yield PeerFlow(kind, size, np.full(len(indices), rank), indices)


def _moved(sent: Sent) -> Message:
    assert isinstance(sent, dict)
    return Moved(sent).message()


def _flow(direction: Any, message: Message, rank: int, indices: IndexArray) -> Flow:
    return Flow(direction, message, np.full(len(indices), rank), indices)
