"""Traffic estimate of a run: builds the messages of both programs from zeros, with the functions that runs use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.control import Control
from ...core.errors import ConfigError, DataError
from ...core.message import Message
from ...core.seeds import Seed
from ...core.traffic_plan import Flow, Setting, TrafficPlan, handshake_flows
from ...data.batches import Batch, BatchPlan, natural_steps, split_micro
from ...data.registry import task as task_entry
from ...engines.split.wire_codec import weight_tensors
from .baselines import BaselineTraffic
from .builders import EVALUATION_BATCH_SIZE, Builder, Shard
from .codec_init import CodecInit, init_shapes
from .config import SplitFineTuning
from .front import Front
from .handshake import Schedule, digest_of, shares
from .protocol import (
    Done,
    Evaluated,
    EvaluationBatch,
    FirstMicroBatch,
    FrontWeights,
    Gradient,
    MicroBatch,
    Offer,
    Saved,
    StepsPerEpoch,
)
from .statistics import CodeStatistics
from .training import freeze
from .wire_codec import batch_tensors, codec_message, gradient_tensors

Lengths = NDArray[np.int32]
#: Names of the assumptions that replace the task's data.
ASSUMED = ("examples", "tokens", "held_out")


@dataclass(frozen=True, slots=True)
class EdgeLengths:
    """Tokens of each sentence of one edge, and the seed of its batches; they determine its messages."""

    train: Lengths
    dev: Lengths
    spare: Lengths
    seed: Seed


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """The sentence lengths of all edges."""

    edges: Sequence[EdgeLengths]
    labels: Sequence[str]
    longest: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Size:
    """The properties of a micro-batch that determine the sizes of its messages."""

    tokens: int
    sentences: int
    widest: int

    @classmethod
    def of(cls, lengths: Lengths, *, ragged: bool) -> _Size:
        longest = int(lengths.max())
        return cls(int(lengths.sum()) if ragged else longest * len(lengths), len(lengths), longest.bit_length())


def plan_run(config: SplitFineTuning, setting: Setting) -> TrafficPlan:
    """Plan the traffic of a run: exact if the task's data is available, otherwise for sentences of equal length.

    See :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`.

    Raises
    ------
    ConfigError
        An assumption is unknown or invalid, or there are more edges than examples in a step.
    DataError
        Neither the task's data nor assumptions about it are given, or the model is missing.
    """
    builder = Builder(config, setting.seed, setting.find)
    front, tokenizer = builder.front()
    task = (
        _assumed_sentences(config, setting, builder)
        if setting.assumed
        else _encoded_sentences(config, setting, builder, tokenizer)
    )
    return _Planner(config, setting, front, task).plan()


def _encoded_sentences(config: SplitFineTuning, setting: Setting, builder: Builder, tokenizer: object) -> TaskLengths:
    try:
        task = builder.task(tokenizer)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(
            f"the traffic depends on the lengths of the task's sentences: {error.message}",
            hint=f"give --data {task_entry(config.task).data_names[0]}=PATH, or assume lengths: "
            "--assume examples=N --assume tokens=MEAN",
        ) from error
    count = len(setting.nodes)
    shards = [task.shard(index, count) for index in range(count)]
    edges = [EdgeLengths(s.train.lengths, s.dev.lengths, _spare(s), s.seed) for s in shards]
    return TaskLengths(edges, task.labels, task.max_length)


def _spare(shard: Shard) -> Lengths:
    return np.empty(0, np.int32) if shard.spare is None else shard.spare.lengths


def _assumed_sentences(config: SplitFineTuning, setting: Setting, builder: Builder) -> TaskLengths:
    """Return sentences of equal lengths, except for rounding that preserves their mean."""
    assumed = setting.assumed
    if unknown := [name for name in assumed if name not in ASSUMED]:
        raise ConfigError(f"unknown assumption '{unknown[0]}'", hint=f"use {', '.join(ASSUMED)}")
    if not assumed.get("examples") or not assumed.get("tokens"):
        raise ConfigError(
            "an estimate without data needs the number of examples and their mean length",
            hint="give --assume examples=N and --assume tokens=MEAN",
        )
    longest = config.max_length or task_entry(config.task).max_length
    examples, held_out, tokens = int(assumed["examples"]), int(assumed.get("held_out", 0)), float(assumed["tokens"])
    if not 1 <= tokens <= longest or examples < len(setting.nodes) or held_out < 0:
        raise ConfigError(
            f"impossible assumption: examples={examples}, tokens={tokens:g}, held_out={held_out}",
            hint=f"assume 1 to {longest} tokens, and at least one example per edge",
        )
    examples, spare = min(examples, config.train_samples or examples), 0
    if config.spare_samples:
        spare = min(config.spare_samples, int(assumed["examples"]) - examples)
    held_out = min(held_out, config.eval_samples or held_out)
    count = len(setting.nodes)

    def shard(total: int, edge: int) -> Lengths:
        return _lengths(total * (edge + 1) // count - total * edge // count, tokens)

    edges = [
        EdgeLengths(shard(examples, i), shard(held_out, i), shard(spare, i), setting.seed.child("shard", i))
        for i in range(count)
    ]
    note = f"{examples:,} training and {held_out:,} held-out sentences of {tokens:g} tokens each"
    return TaskLengths(edges, [str(i) for i in range(builder.classes)], longest, (note,))


def _lengths(count: int, mean: float) -> Lengths:
    """Return ``count`` integers next to ``mean``, spread evenly so that every subsequence has about that mean."""
    lengths: Lengths = np.diff(np.floor(mean * np.arange(count + 1) + 1e-9)).astype(np.int32)
    return lengths


class _Planner:
    """Lists the message flows of a run."""

    def __init__(self, config: SplitFineTuning, setting: Setting, front: Front, task: TaskLengths) -> None:
        self.config, self.setting, self.front, self.task = config, setting, front, task
        self.all_edges = range(len(setting.nodes))
        self.trains = freeze(front, config.freeze)
        self.statistics = CodeStatistics(front.plan.width)
        batch_sizes = shares(config.batch_size, len(setting.nodes))
        pairs = list(zip(task.edges, batch_sizes, strict=True))
        steps = max(natural_steps(len(edge.train), size) for edge, size in pairs)
        self.schedule = Schedule(steps, config)
        self.batches = [BatchPlan(edge.train, size, edge.seed, steps=steps) for edge, size in pairs]
        self.traffic = BaselineTraffic(front.plan.hidden)

    def plan(self) -> TrafficPlan:
        """Return all flows, and the traffic of vanilla split learning."""
        names = self.setting.nodes
        flows = [*handshake_flows(names), *self._before(), *self._steps(), *self._averages(), *self._evaluations()]
        flows += [*self._saved(), Flow.of("down", Done().message(), self.all_edges, self.schedule.total)]
        return TrafficPlan("step", names, flows, self.task.notes, {"vanilla split learning": self.traffic.vanilla})

    def _before(self) -> Iterator[Flow]:
        parameters = sum(p.numel() for p in self.front.parameters())
        for edge, lengths in enumerate(self.task.edges):
            labels = digest_of(self.task.labels)
            offer = Offer(self.front.plan.to_json(), labels, len(lengths.train), parameters, self.trains)
            yield Flow.of("up", offer.message(), [edge])
        yield Flow.of("down", StepsPerEpoch(self.schedule.steps_per_epoch).message(), self.all_edges)
        shapes = init_shapes(self.front.plan)
        init = CodecInit(**{name: torch.zeros(shape) for name, shape in shapes.items()})
        message = codec_message(init, self.config.codec_encoding)
        yield Flow.of("up", message, [0])
        if others := self.all_edges[1:]:
            yield Flow.of("down", message, others)

    def _steps(self) -> Iterator[Flow]:
        """Yield activations and gradients, messages of equal size as one flow."""
        up: dict[tuple[_Size, int, FirstMicroBatch | MicroBatch], list[tuple[int, int]]] = defaultdict(list)
        down: dict[tuple[_Size, int], list[tuple[int, int]]] = defaultdict(list)
        for edge, (data, batches) in enumerate(zip(self.task.edges, self.batches, strict=True)):
            for step in range(self.schedule.total):
                lengths = data.train[batches.at(step)]
                micros = _micros(lengths, self.config.micro_batches)
                for number, part in enumerate(micros):
                    size = _Size.of(part, ragged=self.config.ragged)
                    header = FirstMicroBatch(len(lengths), len(micros)) if number == 0 else MicroBatch()
                    up[size, number, header].append((edge, step))
                    if self.trains:
                        down[size, number].append((edge, step))
        for (size, number, header), where in up.items():
            message = self._batch(header, size, number)
            for _ in where:
                self.traffic.count_step(size.tokens, 0, message, gradients=self.trains)
            yield _flow("up", message, where)
        for (size, number), where in down.items():
            yield _flow("down", self._gradient(size, number), where)

    def _batch(self, header: Control, size: _Size, number: int) -> Message:
        plan = self.front.plan
        q = plan.options.sentence_vector
        sentence = np.zeros((size.sentences, q), np.float32) if q else None
        codes = np.zeros((size.tokens, plan.width), np.float32)
        lengths, labels = np.ones(size.sentences, np.int32), np.zeros(size.sentences, np.int64)
        arrays = codes, sentence, lengths, labels
        tensors = batch_tensors(*arrays, self.config, self.statistics, self.task.longest, len(self.task.labels))
        return header.message(micro=number, tensors=tensors)

    def _gradient(self, size: _Size, number: int) -> Message:
        plan = self.front.plan
        gradients = {"codes": np.zeros((size.tokens, plan.width), np.float32)}
        if q := plan.options.sentence_vector:
            gradients["sentence"] = np.zeros((size.sentences, q), np.float32)
        tensors = gradient_tensors(gradients, _groups(size), self.config, Seed(0))
        return Gradient().message(micro=number, tensors=tensors)

    def _averages(self) -> Iterator[Flow]:
        when = [done for done in self._ends() if self.schedule.averages(done)]
        if not (when and self.trains):
            return
        weights = {n: torch.zeros(p.shape) for n, p in self.front.named_parameters() if p.requires_grad}
        message = FrontWeights().message(tensors=weight_tensors(weights, self.config.average_encoding))
        yield Flow.of("up", message, self.all_edges, when)
        yield Flow.of("down", message, self.all_edges, when)

    def _evaluations(self) -> Iterator[Flow]:
        for which in ("dev", "spare"):
            is_due = self.schedule.evaluates if which == "dev" else self.schedule.scores_spare
            when = [done for done in self._ends() if is_due(done)]
            if not when:
                continue
            for edge, data in enumerate(self.task.edges):
                lengths = np.sort(getattr(data, which))
                for number, at in enumerate(range(0, len(lengths), EVALUATION_BATCH_SIZE)):
                    size = _Size.of(lengths[at : at + EVALUATION_BATCH_SIZE], ragged=self.config.ragged)
                    message = self._batch(EvaluationBatch(), size, number)
                    for _ in when:
                        self.traffic.count_evaluation(size.tokens, message)
                    yield Flow.of("up", message, [edge], when)
            yield Flow.of("up", Evaluated().message(), self.all_edges, when)

    def _saved(self) -> Iterator[Flow]:
        when = [done for done in self._ends() if self.schedule.saves(done)]
        if when and not self.trains:
            yield Flow.of("down", Saved().message(), self.all_edges, when)

    def _ends(self) -> range:
        return range(1, self.schedule.total + 1)


def _flow(direction: str, message: Message, where: Sequence[tuple[int, int]]) -> Flow:
    edges, steps = np.array(where, np.int64).T
    return Flow(direction, message, edges, steps)  # type: ignore[arg-type]


def _groups(size: _Size) -> NDArray[np.int64]:
    """Return lengths with the given sum, count, and bit length of the longest."""
    even = size.tokens // size.sentences + (np.arange(size.sentences) < size.tokens % size.sentences)
    longest = 1 << (size.widest - 1)
    if even[0] >= longest:
        return even
    rest, others = size.tokens - longest, size.sentences - 1
    return np.array([longest, *(rest // others + (np.arange(others) < rest % others))])


def _micros(lengths: Lengths, count: int) -> list[Lengths]:
    """Split a batch of sentences into micro-batches as :func:`~farshore.data.batches.split_micro` does."""
    if count == 1:
        return [lengths]
    shape = len(lengths), int(lengths.max())
    ids, ones = np.broadcast_to(np.int64(0), shape), np.zeros(len(lengths), np.int64)
    return [part.lengths for part in split_micro(Batch(ids, ids, lengths, ones, ones), count)]
