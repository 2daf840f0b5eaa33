"""What a run will send, before it runs: the messages of both programs, built of zeros from the same functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError, DataError
from ...core.message import Message, Scalar
from ...core.seeds import Seed
from ...core.traffic_plan import Flow, Setting, TrafficPlan, greetings
from ...data.batches import Batch, BatchPlan, natural_steps, split_micro
from ...data.registry import task as task_entry
from .baselines import Volume
from .builders import EVALUATION_BATCH, Builder, Shard
from .codec_start import CodecStart, start_shapes
from .config import SplitFineTuning
from .front import Front
from .front_averaging import weight_tensors
from .handshake import Offer, Schedule, digest_of, shares
from .statistics import CodeStatistics
from .training import freeze
from .wire_codec import batch_tensors, gradient_tensors, start_message

Lengths = NDArray[np.int32]
#: What may be assumed of sentences that are not there.
ASSUMED = ("examples", "tokens", "held_out")


@dataclass(frozen=True, slots=True)
class Share:
    """One edge's sentences, as far as their messages depend on them: tokens of each, and where batches come from."""

    train: Lengths
    dev: Lengths
    spare: Lengths
    seed: Seed


@dataclass(frozen=True, slots=True)
class Task:
    """The sentences of all edges."""

    shares: Sequence[Share]
    labels: Sequence[str]
    longest: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Size:
    """All that the size of a micro-batch's messages depends on."""

    tokens: int
    sentences: int
    widest: int

    @classmethod
    def of(cls, lengths: Lengths, *, ragged: bool) -> _Size:
        longest = int(lengths.max())
        return cls(int(lengths.sum()) if ragged else longest * len(lengths), len(lengths), longest.bit_length())


def plan_run(config: SplitFineTuning, setting: Setting) -> TrafficPlan:
    """See :class:`~farshore.core.traffic_plan.Plans`: exact where the sentences are there; else of equal lengths.

    Raises
    ------
    ConfigError
        The assumptions have another name, or there are more edges than examples in a step.
    DataError
        Neither the task's data nor assumptions about them were given; or the model is not there.
    """
    builder = Builder(config, setting.seed, setting.find)
    front, tokenizer = builder.front()
    task = _assumed(config, setting, builder) if setting.assumed else _encoded(config, setting, builder, tokenizer)
    return _Planner(config, setting, front, task).plan()


def _encoded(config: SplitFineTuning, setting: Setting, builder: Builder, tokenizer: object) -> Task:
    try:
        task = builder.task(tokenizer)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(
            f"how much is sent depends on the sentences: {error.message}",
            hint=f"give --data {task_entry(config.task).data_names[0]}=PATH, or say what to take for them: "
            "--assume examples=N --assume tokens=MEAN",
        ) from error
    count = len(setting.nodes)
    shards = [task.shard(place, count) for place in range(count)]
    parts = [Share(s.train.lengths, s.dev.lengths, _spare(s), s.seed) for s in shards]
    return Task(parts, task.labels, task.max_length)


def _spare(shard: Shard) -> Lengths:
    return np.empty(0, np.int32) if shard.spare is None else shard.spare.lengths


def _assumed(config: SplitFineTuning, setting: Setting, builder: Builder) -> Task:
    """Sentences of equal lengths, but for the rounding that makes their mean the one that was asked for."""
    told = setting.assumed
    if unknown := [name for name in told if name not in ASSUMED]:
        raise ConfigError(f"nothing is assumed by the name '{unknown[0]}'", hint=f"use {', '.join(ASSUMED)}")
    if not told.get("examples") or not told.get("tokens"):
        raise ConfigError("an estimate needs both", hint="give --assume examples=N and --assume tokens=MEAN")
    longest = config.max_length or task_entry(config.task).max_length
    examples, held_out, tokens = int(told["examples"]), int(told.get("held_out", 0)), float(told["tokens"])
    if not 1 <= tokens <= longest or examples < len(setting.nodes) or held_out < 0:
        raise ConfigError(
            f"examples={examples} of tokens={tokens:g} cannot be",
            hint=f"assume 1 to {longest} tokens, and an example for each edge",
        )
    examples, spare = min(examples, config.train_samples or examples), 0
    if config.spare_samples:
        spare = min(config.spare_samples, int(told["examples"]) - examples)
    held_out = min(held_out, config.eval_samples or held_out)
    count = len(setting.nodes)

    def part(number: int, edge: int) -> Lengths:
        return _lengths(number * (edge + 1) // count - number * edge // count, tokens)

    parts = [
        Share(part(examples, i), part(held_out, i), part(spare, i), setting.seed.child("shard", i))
        for i in range(count)
    ]
    note = f"{examples:,} training and {held_out:,} held-out sentences of {tokens:g} tokens each"
    return Task(parts, [str(i) for i in range(builder.classes)], longest, (note,))


def _lengths(count: int, mean: float) -> Lengths:
    """Whole numbers next to ``mean``, spread so that any stretch of them has about that mean."""
    found: Lengths = np.diff(np.floor(mean * np.arange(count + 1) + 1e-9)).astype(np.int32)
    return found


class _Planner:
    """Puts the flows of a run together."""

    def __init__(self, config: SplitFineTuning, setting: Setting, front: Front, task: Task) -> None:
        self.config, self.setting, self.front, self.task = config, setting, front, task
        self.everybody = range(len(setting.nodes))
        self.trains = freeze(front, config.freeze)
        self.statistics = CodeStatistics(front.plan.width)
        parts = shares(config.batch_size, len(setting.nodes))
        sizes = zip(task.shares, parts, strict=True)
        steps = max(natural_steps(len(share.train), part) for share, part in sizes)
        self.schedule = Schedule(steps, config)
        self.batches = [
            BatchPlan(share.train, part, share.seed, steps=steps)
            for share, part in zip(task.shares, parts, strict=True)
        ]
        self.volume = Volume(front.plan.hidden)

    def plan(self) -> TrafficPlan:
        """All flows, and what vanilla split learning would have sent."""
        names = self.setting.nodes
        flows = [*greetings(names), *self._before(), *self._steps(), *self._averages(), *self._evaluations()]
        done = Message("control", fields={"what": "done"})
        flows += [*self._saved(), Flow.of("down", done, self.everybody, self.schedule.total)]
        return TrafficPlan("step", names, flows, self.task.notes, {"vanilla split learning": self.volume.vanilla})

    def _before(self) -> Iterator[Flow]:
        parameters = sum(p.numel() for p in self.front.parameters())
        for edge, share in enumerate(self.task.shares):
            offer = Offer(self.front.plan, len(share.train), parameters, digest_of(self.task.labels), self.trains)
            yield Flow.of("up", offer.message(), [edge])
        told: dict[str, Scalar] = {"what": "schedule", "steps_per_epoch": self.schedule.steps_per_epoch}
        yield Flow.of("down", Message("control", fields=told), self.everybody)
        shapes = start_shapes(self.front.plan)
        start = CodecStart(**{name: torch.zeros(shape) for name, shape in shapes.items()})
        message = start_message(start, self.config.codec_encoding)
        yield Flow.of("up", message, [0])
        if others := self.everybody[1:]:
            yield Flow.of("down", message, others)

    def _steps(self) -> Iterator[Flow]:
        """Activations and gradients, those of a size together."""
        up: dict[tuple[_Size, int, tuple[int, ...]], list[tuple[int, int]]] = defaultdict(list)
        down: dict[tuple[_Size, int], list[tuple[int, int]]] = defaultdict(list)
        for edge, (share, batches) in enumerate(zip(self.task.shares, self.batches, strict=True)):
            for step in range(self.schedule.total):
                lengths = share.train[batches.at(step)]
                micros = _micros(lengths, self.config.micro_batches)
                for number, part in enumerate(micros):
                    size = _Size.of(part, ragged=self.config.ragged)
                    head: tuple[int, ...] = (len(lengths), len(micros)) if number == 0 else ()
                    up[size, number, head].append((edge, step))
                    if self.trains:
                        down[size, number].append((edge, step))
        for (size, number, head), where in up.items():
            fields: dict[str, Scalar] = dict(zip(("examples", "micros"), head, strict=True)) if head else {}
            message = self._batch("activation", size, number, fields)
            for _ in where:
                self.volume.count_step(size.tokens, 0, message, gradients=self.trains)
            yield _flow("up", message, where)
        for (size, number), where in down.items():
            yield _flow("down", self._gradient(size, number), where)

    def _batch(self, kind: str, size: _Size, number: int, fields: Mapping[str, Scalar]) -> Message:
        plan = self.front.plan
        q = plan.options.sentence_vector
        sentence = np.zeros((size.sentences, q), np.float32) if q else None
        codes = np.zeros((size.tokens, plan.width), np.float32)
        lengths, labels = np.ones(size.sentences, np.int32), np.zeros(size.sentences, np.int64)
        rest = self.config, self.statistics, self.task.longest, len(self.task.labels)
        return Message(
            kind, micro=number, tensors=batch_tensors(codes, sentence, lengths, labels, *rest), fields=fields
        )

    def _gradient(self, size: _Size, number: int) -> Message:
        plan = self.front.plan
        gradients = {"codes": np.zeros((size.tokens, plan.width), np.float32)}
        if q := plan.options.sentence_vector:
            gradients["sentence"] = np.zeros((size.sentences, q), np.float32)
        tensors = gradient_tensors(gradients, _groups(size), self.config, Seed(0))
        return Message("gradient", micro=number, tensors=tensors)

    def _averages(self) -> Iterator[Flow]:
        when = [done for done in self._ends() if self.schedule.averages(done)]
        if not (when and self.trains):
            return
        arrays = {n: np.zeros(p.shape, np.float32) for n, p in self.front.named_parameters() if p.requires_grad}
        message = Message("weights", tensors=weight_tensors(arrays, self.config.average_encoding))
        yield Flow.of("up", message, self.everybody, when)
        yield Flow.of("down", message, self.everybody, when)

    def _evaluations(self) -> Iterator[Flow]:
        evaluated = Message("control", fields={"what": "evaluated"})
        for which in ("dev", "spare"):
            asks = self.schedule.evaluates if which == "dev" else self.schedule.scores_spare
            when = [done for done in self._ends() if asks(done)]
            if not when:
                continue
            for edge, share in enumerate(self.task.shares):
                lengths = np.sort(getattr(share, which))
                for number, at in enumerate(range(0, len(lengths), EVALUATION_BATCH)):
                    size = _Size.of(lengths[at : at + EVALUATION_BATCH], ragged=self.config.ragged)
                    message = self._batch("evaluation", size, number, {})
                    for _ in when:
                        self.volume.count_evaluation(size.tokens, message)
                    yield Flow.of("up", message, [edge], when)
            yield Flow.of("up", evaluated, self.everybody, when)

    def _saved(self) -> Iterator[Flow]:
        when = [done for done in self._ends() if self.schedule.saves(done)]
        if when and not self.trains:
            yield Flow.of("down", Message("control", fields={"what": "saved"}), self.everybody, when)

    def _ends(self) -> range:
        return range(1, self.schedule.total + 1)


def _flow(direction: str, message: Message, where: Sequence[tuple[int, int]]) -> Flow:
    edges, steps = np.array(where, np.int64).T
    return Flow(direction, message, edges, steps)  # type: ignore[arg-type]


def _groups(size: _Size) -> NDArray[np.int64]:
    """Lengths of so many sentences that sum to the tokens, the longest of which takes as many bits."""
    even = size.tokens // size.sentences + (np.arange(size.sentences) < size.tokens % size.sentences)
    longest = 1 << (size.widest - 1)
    if even[0] >= longest:
        return even
    rest, others = size.tokens - longest, size.sentences - 1
    return np.array([longest, *(rest // others + (np.arange(others) < rest % others))])


def _micros(lengths: Lengths, count: int) -> list[Lengths]:
    """As :func:`~farshore.data.batches.split_micro` divides a batch of such sentences."""
    if count == 1:
        return [lengths]
    shape = len(lengths), int(lengths.max())
    ids, ones = np.broadcast_to(np.int64(0), shape), np.zeros(len(lengths), np.int64)
    return [part.lengths for part in split_micro(Batch(ids, ids, lengths, ones, ones), count)]
