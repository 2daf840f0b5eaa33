"""The traffic plan of a data-parallel run, from dry runs of each rank and each kind of step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from ...core.errors import ConfigError
from ...core.message import Message, Scalar
from ...core.traffic_plan import Flow, IndexArray, PeerFlow, Setting, TrafficPlan, handshake_flows
from ...data.image_set import ImageTask
from ...data.images import load_images
from ...models.state_arrays import from_arrays, to_arrays
from ..collective.dry_run import Sent, dry_rank, replies
from ..collective.protocol import Done, Form, Go, Kept, Moved, Ready
from ..collective.tensors import to_wire
from .baseline import baselines
from .batches import Batches
from .config import DataParallelConfig
from .protocol import Figures, Trained
from .training import Preconditioner, PreconditionerFactory, Training

#: ``get_factory(config, ranks)``: the factory of the preconditioner, or None.
GetFactory: TypeAlias = "Callable[[DataParallelConfig, int], PreconditionerFactory | None]"

#: Images per step of a dry run. The messages do not depend on them; batch normalization needs two.
_BATCH = 2
#: Steps after which DDP has rebuilt its buckets in the order in which gradients become ready.
_REBUILT = 2


class DryRun:
    """Dry runs of every rank: groups the steps that send the same messages, and runs the first step of each group.

    Parameters
    ----------
    config : DataParallelConfig
    task : ImageTask
    setting : Setting
    get_factory : callable
        ``get_factory(config, ranks)``: the factory of the preconditioner, or None.

    Attributes
    ----------
    size : int
        Number of ranks.
    transport : {"star", "peers"}
    total_steps : int
        Steps of the run.
    groups : Mapping
        Steps that send the same messages, by the first of them, in ascending order.
    sent : Mapping
        What each rank sends in a step, by the first step of its group.
    metrics : Mapping
        Fields of rank 0's messages with metrics; the values are placeholders.
    result : Message
        Rank 0's last message, with the trained model.
    parameters : int
        Number of trainable parameters.
    """

    def __init__(self, config: DataParallelConfig, task: ImageTask, setting: Setting, get_factory: GetFactory) -> None:
        self._config, self._task, self._setting, self._get_factory = config, task, setting, get_factory
        self.size = len(setting.nodes)
        self.transport: Literal["star", "peers"] = "peers" if config.transport == "peers" else "star"
        whole = Batches(task.train, config.batch, setting.seed, config.train_samples)
        self.total_steps = config.steps or config.epochs * whole.steps_per_epoch(self.size)
        self.groups: Mapping[int, Sequence[int]] = {}
        self.sent: dict[int, list[Sent]] = defaultdict(list)
        self.metrics: Mapping[str, Scalar] = {}
        self.result = Message("control")
        self.parameters = 0
        for rank in range(self.size):
            self._run_rank(rank)

    @property
    def logged_steps(self) -> list[int]:
        """Steps, counted from 1, after which metrics are reported."""
        return [done for done in range(1, self.total_steps + 1) if self._logs(done)]

    def _logs(self, done: int) -> bool:
        return done % self._config.log_every == 0 or done == self.total_steps

    def _run_rank(self, rank: int) -> None:
        small = self._config.model_copy(update={"batch": _BATCH, "train_samples": 0})
        with dry_rank(self.transport, rank, self.size) as drain:
            factory = self._get_factory(small, self.size)
            training = Training(small, self._task, self._setting.seed, rank, self.size, factory)
            training.load({}, 0)
            initial = to_arrays(training.model, training.optimizer)
            training.wrap_ddp()
            self.groups = self.groups or self._group_steps(training.preconditioner)
            for step in self.groups:
                from_arrays(initial, training.model, training.optimizer)
                if training.preconditioner is not None:
                    training.preconditioner.set_dry_step(step)
                training.step(step)
                if self._logs(step + 1):
                    training.mean_over_ranks(0.0)
                self.sent[step].append(drain())
            if rank == 0:
                self._record_messages(training)

    def _group_steps(self, preconditioner: Preconditioner | None) -> Mapping[int, Sequence[int]]:
        rebuilt = _REBUILT + (self._config.powersgd_start if self._config.compression == "powersgd" else 0)
        first: dict[Hashable, int] = {}
        groups: dict[int, list[int]] = defaultdict(list)
        for step in range(self.total_steps):
            own = preconditioner.traffic_class(step) if preconditioner is not None else None
            groups[first.setdefault((min(step, rebuilt), own, self._logs(step + 1)), step)].append(step)
        return groups

    def _record_messages(self, training: Training) -> None:
        extra = training.preconditioner.metrics() if training.preconditioner else {}
        self.metrics = {"loss": 0.5, "lr": 0.5, "total": self.total_steps, **extra}
        tensors = {name: to_wire(tensor) for name, tensor in training.result().items()}
        self.parameters = training.parameters
        values = {"test_loss": 0.5, "accuracy": 0.5, "steps": self.total_steps, "parameters": self.parameters}
        self.result = Trained(values).message(tensors=tensors)


def plan_run(config: DataParallelConfig, setting: Setting, get_factory: GetFactory) -> TrafficPlan:
    """Plan the messages of a run; see :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`.

    Collectives are exact. Control messages are exact to a few bytes, since their values are placeholders.

    Raises
    ------
    ConfigError
        Figures are assumed: the plan needs the images.
    DataError
        The images are missing.
    """
    if setting.assumed:
        raise ConfigError("a data-parallel run is estimated from its images", hint="use --data NAME=PATH, not --assume")
    run = DryRun(config, load_images(config.dataset, setting.find, setting.seed.child("data")), setting, get_factory)
    notes = []
    if config.transport == "auto" and run.size > 1:
        notes.append("all traffic is assumed to go through the server; for node-to-node traffic: --set transport=peers")
    flows, peers = [*handshake_flows(setting.nodes), *_control_flows(config, run, setting.nodes)], []
    for step, steps in run.groups.items():
        sent, indices = run.sent[step], np.array(steps, np.int64)
        if run.transport == "peers":
            peers += list(_peer_flows(sent, indices))
            flows += [_flow("up", _moved(size), rank, indices) for rank, size in enumerate(sent) if size]
        else:
            flows += list(_star_flows(sent, indices))
    plain = baselines([(0, run.size, run.transport)], run.total_steps, run.parameters)
    return TrafficPlan("step", setting.nodes, flows, notes, plain, peers)


def _control_flows(config: DataParallelConfig, run: DryRun, names: Sequence[str]) -> Iterator[Flow]:
    """Yield the control messages: forming the group, metrics of rank 0, checkpoints and the end."""
    ranks = range(run.size)
    yield Flow.of("up", Ready((), listens=run.transport == "peers").message(), ranks)
    for rank in ranks:
        yield Flow.of("down", Form(1, rank, tuple(names), 0, -1, run.transport).message(), [rank])
    yield Flow.of("up", Figures(run.metrics).message(), [0], run.logged_steps)
    if config.eval_every:
        tests = Figures({"test_loss": 0.5, "accuracy": 0.5}).message()
        yield Flow.of("up", tests, [0], [t - 1 for t in range(config.eval_every, run.total_steps, config.eval_every)])
    checkpoints = range(config.checkpoint_every, run.total_steps, config.checkpoint_every)
    yield Flow.of("up", Kept().message(), ranks, checkpoints)
    yield Flow.of("down", Go().message(), np.tile(ranks, len(checkpoints)))
    yield Flow.of("up", run.result, [0], run.total_steps)
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
