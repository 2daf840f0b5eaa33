"""The server program: the trunk of the model, the labels' loss, and the steps of all edges in one order."""

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
from .baselines import Volume
from .builders import Builder
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .front_averaging import weight_tensors, weighted_mean
from .handshake import SPARE, Offer, Schedule, settle, shares
from .inputs import Inputs, expect
from .optimizer import make_optimizer, make_schedule
from .wire_codec import code_bytes, gradient_tensors, start_message, start_of


class CloudProgram:
    """Trains the trunk with whatever edges the session has.

    Micro-batches are worked through in one fixed order (micro-batch by micro-batch, edges in cohort order), not in
    order of arrival: sums of gradients come out with the same bits in every run.
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
        self.volume = Volume(self.plan.hidden)
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.schedule = self._agree()
        self.optimizer, self.scheduler = make_optimizer(self.trunk, config, self.schedule.total)
        self.first_step = 0
        if session.resume_step is not None:
            self._load(session.resume_step)
        else:
            self._receive_codec()

    # ---- before the first step -----------------------------------------------------------------------------------

    def _agree(self) -> Schedule:
        channels = self.session.channels
        offers = {node: Offer.of(channel.receive()) for node, channel in channels.items()}
        schedule = settle(offers, self.plan, self.config)
        self.volume.front_parameters = next(iter(offers.values())).parameters
        self.trains = {node: offer.trains for node, offer in offers.items()}
        for channel in channels.values():
            channel.send(Message("control", fields={"what": "schedule", "steps_per_epoch": schedule.steps_per_epoch}))
        return schedule

    def _receive_codec(self) -> None:
        """The first edge looks at its samples and settles the codec; everybody else takes over what it found."""
        first, *others = self.session.channels.values()
        start = start_of(first.receive(), self.plan)
        self.trunk.take(start)
        for channel in others:
            channel.send(start_message(start, self.config.codec_encoding))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the run's result."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            loss = self._step(step)
            self._after(step + 1, loss)
        for channel in self.session.channels.values():
            channel.send(Message("control", step=self.schedule.total, fields={"what": "done"}))
        return self._result()

    def _step(self, step: int) -> float:
        self.trunk.train()
        self.optimizer.zero_grad(set_to_none=True)
        heads = {node: self._activation(node, step, 0) for node in self.session.channels}
        total = sum(_announced(node, m, "examples", self.config.batch_size) for node, m in heads.items())
        loss, seen = 0.0, 0
        for slot, node, message in self._in_order(step, heads):
            inputs = self._inputs(message, node)
            self.dropout.at(step, slot)
            loss += self._backward(inputs, node, step, total)
            self._answer(inputs, message, node)
            seen += len(inputs.labels)
        if seen != total:
            raise WireError(f"the edges announced {total} examples for step {step + 1} and sent {seen}")
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def _in_order(self, step: int, heads: dict[str, Message]) -> Iterator[tuple[int, str, Message]]:
        """The step's micro-batches, each with a number of its own and its edge; received as they are asked for."""
        micros = {n: _announced(n, m, "micros", self.config.micro_batches) for n, m in heads.items()}
        for micro in range(max(micros.values())):
            for place, node in enumerate(heads):
                if micro < micros[node]:
                    message = heads[node] if micro == 0 else self._activation(node, step, micro)
                    yield micro * len(heads) + place, node, message

    def _activation(self, node: str, step: int, micro: int) -> Message:
        message = expect(self.session.channels[node].receive(), "activation", node)
        if (message.step, message.micro) != (step, micro):
            raise WireError(f"edge '{node}' sent step {message.step}.{message.micro} where {step}.{micro} was due")
        return message

    def _backward(self, inputs: Inputs, node: str, step: int, total: int) -> float:
        """Forward and backward through the trunk; the step's mean over *all* its examples is what is differentiated."""
        if self.trains[node]:
            inputs.want_gradients()
        loss = functional.cross_entropy(self._logits(inputs), inputs.labels, reduction="sum") / total
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunFailedError(
                f"the loss of edge '{node}' became {value} at step {step + 1}",
                hint="lower learning_rate or codec_lr_factor",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value

    def _answer(self, inputs: Inputs, message: Message, node: str) -> None:
        """Count a micro-batch, and send its gradients to an edge that has a use for them."""
        trains = self.trains[node]
        beside = 0 if inputs.sentence is None else inputs.sentence.numel()
        sent = code_bytes(inputs.codes.numel(), beside, self.config, gradients=trains)
        self.volume.count_step(len(inputs.codes), sent, message, gradients=trains)
        if not trains:
            return
        seed = self.session.run.seed.child("gradient", message.step, node, message.micro)
        gradients = inputs.gradients(f"edge '{node}' at step {message.step + 1}")
        tensors = gradient_tensors(gradients, inputs.groups, self.config, seed)
        reply = Message("gradient", step=message.step, micro=message.micro, tensors=tensors)
        self.session.channels[node].send(reply)

    def _inputs(self, message: Message, node: str) -> Inputs:
        where = f"edge '{node}' at step {message.step}"
        return Inputs.of(message, self.plan, ragged=self.config.ragged, max_length=self.max_length, where=where)

    def _logits(self, inputs: Inputs) -> torch.Tensor:
        logits: torch.Tensor = self.trunk(inputs.padded(), inputs.mask, inputs.sentence)
        return logits

    # ---- after a step --------------------------------------------------------------------------------------------

    def _after(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        self.session.metrics(done, loss=loss, learning_rate=float(self.scheduler.get_last_lr()[0]))
        if any(self.trains.values()) and self.schedule.averages(done):
            self._average(done)
        if self.schedule.evaluates(done):
            self.evaluations.append(self._evaluate(done))
            self.session.metrics(done, **self._newest())
        if self.schedule.saves(done):
            meta = {
                "losses": self.losses,
                "evaluations": self.evaluations,
                "volume": self.volume.as_dict(),
            }
            self.session.save_checkpoint(done, to_arrays(self.trunk, self.optimizer), meta)
            for node, channel in self.session.channels.items():
                if not self.trains[node]:
                    channel.send(Message("control", step=done, fields={"what": "saved"}))
        window = self.losses[-20:]
        self.session.progress(done, self.schedule.total, loss=sum(window) / len(window), **self._newest())

    def _newest(self) -> dict[str, float]:
        return {self.metric: self.evaluations[-1][self.metric]} if self.evaluations else {}

    def _average(self, done: int) -> None:
        """Mean of how far the edges' fronts moved, weighted by their share of a step, summed in cohort order."""
        channels = self.session.channels
        weights = shares(self.config.batch_size, len(channels))
        parts = (
            (node, weight / self.config.batch_size, expect(channel.receive(), "weights", node))
            for weight, (node, channel) in zip(weights, channels.items(), strict=True)
        )
        mean = weight_tensors(weighted_mean(parts), self.config.average_encoding)
        for channel in channels.values():
            channel.send(Message("weights", step=done, tensors=mean))

    @torch.no_grad()
    def _evaluate(self, done: int) -> dict[str, float]:
        self.trunk.eval()
        figures: dict[str, float] = {"step": done}
        for name in (self.metric, SPARE) if self.schedule.scores_spare(done) else (self.metric,):
            truth, guess = self._guess()
            if len(truth):
                figures[name] = score(self.metric, truth, guess)
                self.session.log(f"step {done}: {name} {figures[name]:.4f} on {len(truth)} examples")
        return figures

    def _guess(self) -> tuple[Array, Array]:
        """Classes and guesses for what all edges send until each says that it has evaluated."""
        truth: list[Array] = []
        guess: list[Array] = []
        for node, channel in self.session.channels.items():
            while True:
                message = channel.receive()
                if message.kind == "control" and message.fields.get("what") == "evaluated":
                    break
                inputs = self._inputs(expect(message, "evaluation", node), node)
                guess.append(self._logits(inputs).argmax(-1).numpy())
                truth.append(inputs.labels.numpy())
                self.volume.count_evaluation(len(inputs.codes), message)
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *truth]), np.concatenate([empty, *guess])

    # ---- checkpoints and the result ------------------------------------------------------------------------------

    def _load(self, step: int) -> None:
        arrays, meta = self.session.load_checkpoint(step)
        from_arrays(arrays, self.trunk, self.optimizer)
        self.trunk.factorized = None
        self.losses, self.evaluations = list(meta["losses"]), list(meta["evaluations"])
        self.volume.restore(meta["volume"])
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
            "parameters": {"edge": self.volume.front_parameters, "cloud": trunk},
            "code_bytes": self.volume.code_bytes,
            "vanilla_bytes": self.volume.vanilla_training,
            "baselines": self.volume.baselines(self.volume.front_parameters + trunk, self.schedule.epochs, edges),
        }


def _announced(node: str, message: Message, what: str, most: int) -> int:
    """A count in the first message of a step, from 1 to ``most``."""
    value = message.fields.get(what)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise WireError(f"edge '{node}' announced {value!r} {what} for step {message.step + 1}, not 1 to {most}")
    return value
