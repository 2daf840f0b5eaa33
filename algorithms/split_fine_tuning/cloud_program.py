"""Server program of split fine-tuning: trains the trunk and the head against the fronts of all edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core.errors import RunFailedError, WireError
from ...core.expectations import Expected
from ...core.message import Array, Message
from ...core.session import ServerSession
from ...data.metrics import score
from ...data.registry import task as task_entry
from ...engines.split.placement import Placement
from ...engines.split.seeded_dropout import OwnGeneratorDropout
from ...engines.split.turns import expect, require_position
from ...engines.split.wire_codec import weight_tensors
from ...models.state_arrays import from_arrays, to_arrays
from .baselines import BaselineTraffic
from .builders import EVALUATION_BATCH_SIZE, Builder
from .config import SplitFineTuning
from .front_averaging import weighted_mean
from .handshake import SPARE, Schedule, agree_on_schedule, shares
from .inputs import TrunkInputs
from .optimizer import make_optimizer, make_schedule
from .protocol import (
    EVALUATION,
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
    edge,
)
from .wire_codec import code_bytes, codec_init_of, codec_message, gradient_tensors, largest_batch


class CloudProgram:
    """Trains the trunk with the edges of a session.

    Micro-batches are processed in a fixed order (by micro-batch, then by edge in cohort order), not in order of
    arrival, so that sums of gradients have the same bits in every run.
    """

    def __init__(self, session: ServerSession, config: SplitFineTuning) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.session = session
        self.config = config
        entry = task_entry(config.task)
        self.metric, self.max_length = entry.metric, config.max_length or entry.max_length
        self.placement = Placement(config)
        self.trunk = self.placement.place(Builder(config, session.run.seed, session.data).trunk())
        self.plan = self.trunk.plan
        seed = session.run.seed.child("dropout", "trunk")
        self.dropout = OwnGeneratorDropout(self.trunk, seed, self.placement.device)
        self.traffic = BaselineTraffic(self.plan.hidden)
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.schedule = self._handshake()
        self.optimizer, self.scheduler = make_optimizer(self.trunk, config, self.schedule.total)
        self.first_step = 0
        if session.resume_step is not None:
            self._load(session.resume_step)
        else:
            self._initialize_codec()

    # ---- before the first step -----------------------------------------------------------------------------------

    def _handshake(self) -> Schedule:
        channels = self.session.channels
        step, evaluation = (
            Expected(dense_bytes=largest_batch(self.config, self.plan, self.max_length, examples))
            for examples in (self.config.batch_size, EVALUATION_BATCH_SIZE)
        )
        for channel in channels.values():
            channel.expect({FirstMicroBatch.kind: step, EvaluationBatch.kind: evaluation})
        offers = {node: expect(channel.receive(), Offer, edge(node), 0) for node, channel in channels.items()}
        schedule = agree_on_schedule(offers, self.plan, self.config)
        self.traffic.front_parameters = next(iter(offers.values())).parameters
        self.trains = {node: offer.trains for node, offer in offers.items()}
        for channel in channels.values():
            channel.send(StepsPerEpoch(schedule.steps_per_epoch).message())
        return schedule

    def _initialize_codec(self) -> None:
        """Initialize the codec from the first edge's calibration, and send it to the other edges."""
        (node, first), *others = self.session.channels.items()
        init = codec_init_of(first.receive(), self.plan, edge(node))
        self.trunk.initialize_codec(init)
        for _, channel in others:
            channel.send(codec_message(init, self.config.codec_encoding))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; return the run's result."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            loss = self._step(step)
            self._finish_step(step + 1, loss)
        for channel in self.session.channels.values():
            channel.send(Done().message(step=self.schedule.total))
        return self._result()

    def _step(self, step: int) -> float:
        self.trunk.train()
        self.optimizer.zero_grad(set_to_none=True)
        messages = {node: channel.receive() for node, channel in self.session.channels.items()}
        announced = {node: self._announced(node, message, step) for node, message in messages.items()}
        total = sum(header.examples for header in announced.values())
        loss, seen = 0.0, 0
        for slot, node, message in self._ordered_micro_batches(step, messages, announced):
            inputs = self._inputs(message, node)
            self.dropout.reseed(step, slot)
            loss += self._backward(inputs, node, step, total)
            self._reply_gradients(inputs, message, node)
            seen += len(inputs.labels)
        if seen != total:
            raise WireError(f"the edges announced {total} examples for step {step + 1} and sent {seen}")
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def _ordered_micro_batches(
        self, step: int, first: dict[str, Message], announced: dict[str, FirstMicroBatch]
    ) -> Iterator[tuple[int, str, Message]]:
        """Receive a step's micro-batches in their fixed order; yield a slot number, the edge and the message."""
        for micro in range(max(header.micros for header in announced.values())):
            for index, node in enumerate(first):
                if micro < announced[node].micros:
                    message = first[node] if micro == 0 else self.session.channels[node].receive()
                    if micro:
                        expect(message, MicroBatch, edge(node), step, micro)
                    yield micro * len(first) + index, node, message

    def _announced(self, node: str, message: Message, step: int) -> FirstMicroBatch:
        """Read and check the header of an edge's first micro-batch of a step."""
        header = expect(message, FirstMicroBatch, edge(node), step)
        if header.examples > self.config.batch_size or header.micros > self.config.micro_batches:
            raise WireError(
                f"{edge(node)} announced {header.examples} examples in {header.micros} micro-batches for step "
                f"{step + 1}, expected at most {self.config.batch_size} in {self.config.micro_batches}"
            )
        return header

    def _backward(self, inputs: TrunkInputs, node: str, step: int, total: int) -> float:
        """Run the trunk forward and backward; return the sum of the micro-batch's losses divided by ``total``."""
        if self.trains[node]:
            inputs.require_gradients()
        loss = functional.cross_entropy(self._logits(inputs).float(), inputs.labels, reduction="sum") / total
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunFailedError(
                f"the loss of edge '{node}' became {value} at step {step + 1}",
                hint="lower learning_rate or codec_lr_factor",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value

    def _reply_gradients(self, inputs: TrunkInputs, message: Message, node: str) -> None:
        """Count the traffic of a micro-batch; send the gradients of its codes unless the edge's front is frozen."""
        trains = self.trains[node]
        sentence_numbers = 0 if inputs.sentence is None else inputs.sentence.numel()
        codes = inputs.tokens.codes
        sent = code_bytes(codes.numel(), sentence_numbers, self.config, gradients=trains)
        self.traffic.count_step(len(codes), sent, message, gradients=trains)
        if not trains:
            return
        seed = self.session.run.seed.child("gradient", message.step, node, message.micro)
        gradients = inputs.gradients(f"edge '{node}' at step {message.step + 1}")
        tensors = gradient_tensors(gradients, inputs.tokens.rows.per_sentence, self.config, seed)
        reply = Gradient().message(step=message.step, micro=message.micro, tensors=tensors)
        self.session.channels[node].send(reply)

    def _inputs(self, message: Message, node: str) -> TrunkInputs:
        return TrunkInputs.from_message(
            message,
            self.plan,
            ragged=self.config.ragged,
            max_length=self.max_length,
            device=self.placement.device,
            sender=f"{edge(node)} at step {message.step}",
        )

    def _logits(self, inputs: TrunkInputs) -> torch.Tensor:
        with self.placement.autocast():
            logits: torch.Tensor = self.trunk(inputs.tokens.padded(), inputs.tokens.mask, inputs.sentence)
        return logits

    # ---- after a step --------------------------------------------------------------------------------------------

    def _finish_step(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        self.session.metrics(done, loss=loss, learning_rate=float(self.scheduler.get_last_lr()[0]))
        if any(self.trains.values()) and self.schedule.averages(done):
            self._average(done)
        if self.schedule.evaluates(done):
            self.evaluations.append(self._evaluate(done))
            self.session.metrics(done, **self._latest_score())
        if self.schedule.saves(done):
            meta = {
                "losses": self.losses,
                "evaluations": self.evaluations,
                "volume": self.traffic.as_dict(),
            }
            self.session.save_checkpoint(done, to_arrays(self.trunk, self.optimizer), meta)
            for node, channel in self.session.channels.items():
                if not self.trains[node]:
                    channel.send(Saved().message(step=done))
        window = self.losses[-20:]
        self.session.progress(done, self.schedule.total, loss=sum(window) / len(window), **self._latest_score())

    def _latest_score(self) -> dict[str, float]:
        return {self.metric: self.evaluations[-1][self.metric]} if self.evaluations else {}

    def _average(self, done: int) -> None:
        """Send all edges the mean of their fronts' differences, weighted by their share of a step's examples."""
        mean = weight_tensors(weighted_mean(self._contributions(done)), self.config.average_encoding)
        for channel in self.session.channels.values():
            channel.send(FrontWeights().message(step=done, tensors=mean))

    def _contributions(self, done: int) -> Iterator[tuple[str, float, Message]]:
        channels = self.session.channels
        weights = shares(self.config.batch_size, len(channels))
        for weight, (node, channel) in zip(weights, channels.items(), strict=True):
            message = channel.receive()
            expect(message, FrontWeights, edge(node), done)
            yield node, weight / self.config.batch_size, message

    @torch.no_grad()
    def _evaluate(self, done: int) -> dict[str, float]:
        self.trunk.eval()
        scores: dict[str, float] = {"step": done}
        for name in (self.metric, SPARE) if self.schedule.scores_spare(done) else (self.metric,):
            labels, predictions = self._predict(done)
            if len(labels):
                scores[name] = score(self.metric, labels, predictions)
                self.session.log(f"step {done}: {name} {scores[name]:.4f} on {len(labels)} examples")
        return scores

    def _predict(self, done: int) -> tuple[Array, Array]:
        """Return labels and predictions for all evaluation messages, up to each edge's ``evaluated``."""
        labels: list[Array] = []
        predictions: list[Array] = []
        for node, channel in self.session.channels.items():
            for micro in count():
                message = channel.receive()
                header = EVALUATION.read(message, edge(node))
                require_position(message, edge(node), done, 0 if isinstance(header, Evaluated) else micro)
                if isinstance(header, Evaluated):
                    break
                inputs = self._inputs(message, node)
                predictions.append(self._logits(inputs).argmax(-1).cpu().numpy())
                labels.append(inputs.labels.cpu().numpy())
                self.traffic.count_evaluation(len(inputs.tokens.codes), message)
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *labels]), np.concatenate([empty, *predictions])

    # ---- checkpoints and the result ------------------------------------------------------------------------------

    def _load(self, step: int) -> None:
        arrays, meta = self.session.load_checkpoint(step)
        from_arrays(arrays, self.trunk, self.optimizer)
        self.trunk.factorized = None
        self.losses, self.evaluations = list(meta["losses"]), list(meta["evaluations"])
        self.traffic.restore(meta["volume"])
        self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, step)
        self.first_step = step

    def _result(self) -> dict[str, Any]:
        trunk = sum(p.numel() for p in self.trunk.parameters())
        edges = len(self.session.channels)
        return {
            "metric": self.metric,
            "score": self.evaluations[-1][self.metric],
            "score_spare": self.evaluations[-1].get(SPARE),
            "evaluations": self.evaluations,
            "steps": self.schedule.total,
            "edges": edges,
            "loss": float(np.mean(self.losses[-50:])),
            "block": self.plan.options.block,
            "width": self.plan.width,
            "parameters": {"edge": self.traffic.front_parameters, "cloud": trunk},
            "code_bytes": self.traffic.code_bytes,
            "vanilla_bytes": self.traffic.vanilla_training,
            "baselines": self.traffic.baselines(self.traffic.front_parameters + trunk, self.schedule.epochs, edges),
        }
