"""What a run will send, before it runs: each rank takes one step of every kind, with nobody there to wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from ...core.errors import ConfigError
from ...core.message import Message, Scalar
from ...core.traffic_plan import Flow, PeerFlow, Places, Setting, TrafficPlan, greetings
from ...data.image_set import ImageTask
from ...data.images import load_images
from ...models.state_arrays import from_arrays, to_arrays
from ..collective.dry_run import Sent, answers, dry_rank
from ..collective.tensors import to_wire
from .baseline import baselines
from .batches import Batches
from .config import DataParallel
from .training import Make, Preconditioner, Training

#: ``make(config, ranks)``: the preconditioner's maker, or None.
Maker: TypeAlias = "Callable[[DataParallel, int], Make | None]"

#: Images of a step that nothing is computed for: what is sent does not depend on them, batch normalization needs two.
_FEW = 2
#: Steps after which DDP has put its buckets in the order in which gradients come.
_SETTLED = 2


class DryRun:
    """The steps of a run, those that send alike together, and what each rank sends in the first of them.

    Parameters
    ----------
    config : DataParallel
    task : ImageTask
    setting : Setting
    make : callable
        ``make(config, ranks)``: the preconditioner's maker, or None.

    Attributes
    ----------
    total : int
        Steps.
    groups : Mapping
        Steps that send alike, by the first of them; in this order.
    sent : Mapping
        By the same step, what each rank sends.
    figures : Mapping
        What the first rank tells, values apart.
    result : Message
        Its model.
    parameters : int
        Numbers that are trained.
    """

    def __init__(self, config: DataParallel, task: ImageTask, setting: Setting, make: Maker) -> None:
        self._config, self._task, self._setting, self._make = config, task, setting, make
        self.size = len(setting.nodes)
        self.transport: Literal["star", "peers"] = "peers" if config.transport == "peers" else "star"
        whole = Batches(task.train, config.batch, setting.seed, config.train_samples)
        self.total = config.steps or config.epochs * whole.per_epoch(self.size)
        self.groups: Mapping[int, Sequence[int]] = {}
        self.sent: dict[int, list[Sent]] = defaultdict(list)
        self.figures: Mapping[str, Scalar] = {}
        self.result = Message("control")
        self.parameters = 0
        for rank in range(self.size):
            self._rank(rank)

    @property
    def logged(self) -> list[int]:
        """Steps after which figures are told, counted from 1."""
        return [done for done in range(1, self.total + 1) if self._logs(done)]

    def _logs(self, done: int) -> bool:
        return done % self._config.log_every == 0 or done == self.total

    def _rank(self, rank: int) -> None:
        few = self._config.model_copy(update={"batch": _FEW, "train_samples": 0})
        with dry_rank(self.transport, rank, self.size) as taken:
            training = Training(few, self._task, self._setting.seed, rank, self.size, self._make(few, self.size))
            training.load({}, 0)
            first = to_arrays(training.model, training.optimizer)
            training.wrap()
            self.groups = self.groups or self._grouped(training.preconditioner)
            for step in self.groups:
                from_arrays(first, training.model, training.optimizer)
                if training.preconditioner is not None:
                    training.preconditioner.pretend(step)
                training.step(step)
                if self._logs(step + 1):
                    training.mean(0.0)
                self.sent[step].append(taken())
            if rank == 0:
                self._told(training)

    def _grouped(self, preconditioner: Preconditioner | None) -> Mapping[int, Sequence[int]]:
        settled = _SETTLED + (self._config.powersgd_start if self._config.compression == "powersgd" else 0)
        first: dict[Hashable, int] = {}
        groups: dict[int, list[int]] = defaultdict(list)
        for step in range(self.total):
            own = preconditioner.kind_of(step) if preconditioner is not None else None
            groups[first.setdefault((min(step, settled), own, self._logs(step + 1)), step)].append(step)
        return groups

    def _told(self, training: Training) -> None:
        extra = training.preconditioner.figures() if training.preconditioner else {}
        self.figures = {"what": "figures", "loss": 0.5, "lr": 0.5, "total": self.total, **extra}
        tensors = {name: to_wire(tensor) for name, tensor in training.result().items()}
        self.parameters = training.parameters
        fields: dict[str, Scalar] = {"what": "end", "test_loss": 0.5, "accuracy": 0.5, "steps": self.total}
        fields["parameters"] = self.parameters
        self.result = Message("control", tensors=tensors, fields=fields)


def plan_run(config: DataParallel, setting: Setting, make: Maker) -> TrafficPlan:
    """See :class:`~farshore.core.traffic_plan.Plans`: collectives exactly; what is told between them to a few bytes.

    Raises
    ------
    ConfigError
        Something is assumed: the images are needed.
    DataError
        The images are not there.
    """
    if setting.assumed:
        raise ConfigError("a data-parallel run is estimated from its images", hint="give --data NAME=PATH, no --assume")
    run = DryRun(config, load_images(config.dataset, setting.find, setting.seed.child("data")), setting, make)
    notes = []
    if config.transport == "auto" and run.size > 1:
        notes.append("all goes through the server; where every node listens for others: --set transport=peers")
    flows, peers = [*greetings(setting.nodes), *_around(config, run, setting.nodes)], []
    for step, places in run.groups.items():
        sent, where = run.sent[step], np.array(places, np.int64)
        if run.transport == "peers":
            peers += list(_between(sent, where))
            flows += [_flow("up", _moved(moved), rank, where) for rank, moved in enumerate(sent) if moved]
        else:
            flows += list(_through(sent, where))
    plain = baselines([(0, run.size, run.transport)], run.total, run.parameters)
    return TrafficPlan("step", setting.nodes, flows, notes, plain, peers)


def _around(config: DataParallel, run: DryRun, names: Sequence[str]) -> Iterator[Flow]:
    """All that is no collective: how ranks are formed, what the first of them tells, checkpoints, the end."""
    everybody = range(run.size)
    yield Flow.of("up", _control("ready", steps="", listens=run.transport == "peers"), everybody)
    for rank in everybody:
        form: dict[str, Scalar] = {"generation": 1, "rank": rank, "names": ",".join(names), "step": 0, "source": -1}
        yield Flow.of("down", _control("form", **form, transport=run.transport), [rank])
    yield Flow.of("up", Message("control", fields=run.figures), [0], run.logged)
    if config.eval_every:
        tests = _control("figures", test_loss=0.5, accuracy=0.5)
        yield Flow.of("up", tests, [0], [t - 1 for t in range(config.eval_every, run.total, config.eval_every)])
    kept = range(config.checkpoint_every, run.total, config.checkpoint_every)
    yield Flow.of("up", _control("kept"), everybody, kept)
    yield Flow.of("down", _control("go"), np.tile(everybody, len(kept)))
    yield Flow.of("up", run.result, [0], run.total)
    yield Flow.of("up", _control("end"), everybody[1:], run.total)
    yield Flow.of("down", _control("done"), everybody)


def _through(sent: Sequence[Sent], places: Places) -> Iterator[Flow]:
    """Through the server: what each rank asks, and what it is answered."""
    asked = [messages for messages in sent if isinstance(messages, list)]
    for direction, by_rank in (("up", asked), ("down", answers(asked))):
        for rank, messages in enumerate(by_rank):
            for message in messages:
                yield _flow(direction, message, rank, places)


def _between(sent: Sequence[Sent], places: Places) -> Iterator[PeerFlow]:
    """Node to node: bytes by kind, as each rank tells them."""
    for rank, moved in enumerate(sent):
        assert isinstance(moved, dict)
        for kind, size in moved.items():
            yield PeerFlow(kind, size, np.full(len(places), rank), places)


def _moved(sent: Sent) -> Message:
    assert isinstance(sent, dict)
    return _control("moved", **sent)


def _flow(direction: Any, message: Message, rank: int, places: Places) -> Flow:
    return Flow(direction, message, np.full(len(places), rank), places)


def _control(what: str, **fields: Scalar) -> Message:
    return Message("control", fields={"what": what, **fields})
