"""Server program of split fine-tuning: trains the trunk and the head against the fronts of all edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from ...core.session import ServerSession
from ...data.metrics import score
from ...data.registry import task as task_entry
from ...models.state_arrays import from_arrays, to_arrays
from .baselines import BaselineTraffic
from .builders import Builder
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .front_averaging import weight_tensors, weighted_mean
from .handshake import SPARE, Offer, Schedule, agree_on_schedule, shares
from .inputs import TrunkInputs, expect
from .optimizer import make_optimizer, make_schedule
from .wire_codec import code_bytes, codec_init_of, codec_message, gradient_tensors


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
        self.trunk = Builder(config, session.run.seed, session.data).trunk()
        self.plan = self.trunk.plan
        self.dropout = DropoutSeeds(self.trunk, session.run.seed.child("dropout", "trunk"))
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
        offers = {node: Offer.from_message(channel.receive()) for node, channel in channels.items()}
        schedule = agree_on_schedule(offers, self.plan, self.config)
        self.traffic.front_parameters = next(iter(offers.values())).parameters
        self.trains = {node: offer.trains for node, offer in offers.items()}
        for channel in channels.values():
            channel.send(Message("control", fields={"what": "schedule", "steps_per_epoch": schedule.steps_per_epoch}))
        return schedule

    def _initialize_codec(self) -> None:
        """Initialize the codec from the first edge's calibration, and send it to the other edges."""
        first, *others = self.session.channels.values()
        init = codec_init_of(first.receive(), self.plan)
        self.trunk.initialize_codec(init)
        for channel in others:
            channel.send(codec_message(init, self.config.codec_encoding))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; return the run's result."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            loss = self._step(step)
            self._finish_step(step + 1, loss)
        for channel in self.session.channels.values():
            channel.send(Message("control", step=self.schedule.total, fields={"what": "done"}))
        return self._result()

    def _step(self, step: int) -> float:
        self.trunk.train()
        self.optimizer.zero_grad(set_to_none=True)
        first_messages = {node: self._activation(node, step, 0) for node in self.session.channels}
        total = sum(_announced(node, m, "examples", self.config.batch_size) for node, m in first_messages.items())
        loss, seen = 0.0, 0
        for slot, node, message in self._ordered_micro_batches(step, first_messages):
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
        self, step: int, first_messages: dict[str, Message]
    ) -> Iterator[tuple[int, str, Message]]:
        """Receive a step's micro-batches in their fixed order; yield a slot number, the edge and the message."""
        micros = {n: _announced(n, m, "micros", self.config.micro_batches) for n, m in first_messages.items()}
        for micro in range(max(micros.values())):
            for index, node in enumerate(first_messages):
                if micro < micros[node]:
                    message = first_messages[node] if micro == 0 else self._activation(node, step, micro)
                    yield micro * len(first_messages) + index, node, message

    def _activation(self, node: str, step: int, micro: int) -> Message:
        message = expect(self.session.channels[node].receive(), "activation", node)
        if (message.step, message.micro) != (step, micro):
            raise WireError(
                f"expected activation {step}.{micro} from edge '{node}', got {message.step}.{message.micro}"
            )
        return message

    def _backward(self, inputs: TrunkInputs, node: str, step: int, total: int) -> float:
        """Run the trunk forward and backward; return the sum of the micro-batch's losses divided by ``total``."""
        if self.trains[node]:
            inputs.require_gradients()
        loss = functional.cross_entropy(self._logits(inputs), inputs.labels, reduction="sum") / total
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
        sent = code_bytes(inputs.codes.numel(), sentence_numbers, self.config, gradients=trains)
        self.traffic.count_step(len(inputs.codes), sent, message, gradients=trains)
        if not trains:
            return
        seed = self.session.run.seed.child("gradient", message.step, node, message.micro)
        gradients = inputs.gradients(f"edge '{node}' at step {message.step + 1}")
        tensors = gradient_tensors(gradients, inputs.groups, self.config, seed)
        reply = Message("gradient", step=message.step, micro=message.micro, tensors=tensors)
        self.session.channels[node].send(reply)

    def _inputs(self, message: Message, node: str) -> TrunkInputs:
        sender = f"edge '{node}' at step {message.step}"
        return TrunkInputs.from_message(
            message, self.plan, ragged=self.config.ragged, max_length=self.max_length, sender=sender
        )

    def _logits(self, inputs: TrunkInputs) -> torch.Tensor:
        logits: torch.Tensor = self.trunk(inputs.padded(), inputs.mask, inputs.sentence)
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
                    channel.send(Message("control", step=done, fields={"what": "saved"}))
        window = self.losses[-20:]
        self.session.progress(done, self.schedule.total, loss=sum(window) / len(window), **self._latest_score())

    def _latest_score(self) -> dict[str, float]:
        return {self.metric: self.evaluations[-1][self.metric]} if self.evaluations else {}

    def _average(self, done: int) -> None:
        """Send all edges the mean of their fronts' differences, weighted by their share of a step's examples."""
        channels = self.session.channels
        weights = shares(self.config.batch_size, len(channels))
        contributions = (
            (node, weight / self.config.batch_size, expect(channel.receive(), "weights", node))
            for weight, (node, channel) in zip(weights, channels.items(), strict=True)
        )
        mean = weight_tensors(weighted_mean(contributions), self.config.average_encoding)
        for channel in channels.values():
            channel.send(Message("weights", step=done, tensors=mean))

    @torch.no_grad()
    def _evaluate(self, done: int) -> dict[str, float]:
        self.trunk.eval()
        scores: dict[str, float] = {"step": done}
        for name in (self.metric, SPARE) if self.schedule.scores_spare(done) else (self.metric,):
            labels, predictions = self._predict()
            if len(labels):
                scores[name] = score(self.metric, labels, predictions)
                self.session.log(f"step {done}: {name} {scores[name]:.4f} on {len(labels)} examples")
        return scores

    def _predict(self) -> tuple[Array, Array]:
        """Return labels and predictions for all evaluation messages, up to each edge's ``evaluated``."""
        labels: list[Array] = []
        predictions: list[Array] = []
        for node, channel in self.session.channels.items():
            while True:
                message = channel.receive()
                if message.kind == "control" and message.fields.get("what") == "evaluated":
                    break
                inputs = self._inputs(expect(message, "evaluation", node), node)
                predictions.append(self._logits(inputs).argmax(-1).numpy())
                labels.append(inputs.labels.numpy())
                self.traffic.count_evaluation(len(inputs.codes), message)
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


def _announced(node: str, message: Message, what: str, most: int) -> int:
    """Read a count of the first message of a step, from 1 to ``most``."""
    value = message.fields.get(what)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise WireError(f"edge '{node}' announced {value!r} {what} for step {message.step + 1}, expected 1 to {most}")
    return value
