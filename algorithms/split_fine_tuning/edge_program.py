"""Node program of split fine-tuning: trains the front on local text; sends codes and receives their gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch

from ...core.control import Control
from ...core.errors import RunFailedError
from ...core.expectations import Expected
from ...core.message import Array, Message
from ...core.session import NodeSession
from ...data.batches import Batch, split_micro
from ...engines.split.placement import Placement
from ...engines.split.seeded_dropout import OwnGeneratorDropout
from ...engines.split.token_rows import TokenRows
from ...engines.split.turns import expect
from ...engines.split.wire_codec import floats_of, read_weights
from ...models.state_arrays import from_arrays, to_arrays
from .builders import Builder, inputs_of
from .calibration import calibrate
from .config import SplitFineTuning
from .front_averaging import FrontAverage
from .handshake import Schedule, digest_of, shares
from .optimizer import make_optimizer, make_schedule
from .protocol import (
    CLOUD,
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
from .row_gradients import RowGradients
from .training import freeze
from .wire_codec import DTYPES, batch_tensors, codec_init_of, codec_message, largest_batch

#: Codes of a micro-batch's tokens ``[M, w]`` and, if the plan has them, sentence vectors ``[B, q]``.
Codes: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


class EdgeProgram:
    """Trains the front of one edge against the cloud's trunk."""

    def __init__(self, session: NodeSession, config: SplitFineTuning) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.session = session
        self.config = config
        self.index = session.run.nodes.index(session.node)
        builder = Builder(config, session.run.seed, session.data)
        self.placement = Placement(config)
        front, tokenizer = builder.front()
        self.front = self.placement.place(front)
        task = builder.task(tokenizer)
        for note in task.notes:
            session.log(note)
        self.labels, self.classes, self.max_length = task.labels, task.classes, task.max_length
        self.shard = task.shard(*session.shard)
        seed = session.run.seed.child("dropout", "front", self.index)
        self.dropout = OwnGeneratorDropout(self.front, seed, self.placement.device)
        self.trains = freeze(self.front, config.freeze)
        self.schedule = self._handshake()
        share = shares(config.batch_size, len(session.run.nodes))[self.index]
        self.plan = self.shard.plan(share, self.schedule.steps_per_epoch)
        self.gradients = RowGradients(self.front)
        if self.trains:
            self.optimizer, self.scheduler = make_optimizer(self.front, config, self.schedule.total)
        self.first_step = session.resume_step or 0
        saved = None if session.resume_step is None else self._load(session.resume_step)
        if saved is None:
            self._initialize_codec()
        self.averaging = FrontAverage(self.front, config.average_encoding) if config.average_every else None
        if self.averaging and saved is not None:
            self.averaging.from_arrays(saved)

    # ---- before the first step -----------------------------------------------------------------------------------

    def _handshake(self) -> Schedule:
        channel = self.session.channel
        largest = largest_batch(self.config, self.front.plan, self.max_length, self.config.batch_size)
        channel.expect({Gradient.kind: Expected(dense_bytes=largest)})
        parameters = sum(p.numel() for p in self.front.parameters())
        examples = len(self.shard.train)
        plan = self.front.plan.to_json()
        channel.send(Offer(plan, digest_of(self.labels), examples, parameters, self.trains).message())
        return Schedule(expect(channel.receive(), StepsPerEpoch, CLOUD, 0).steps_per_epoch, self.config)

    def _initialize_codec(self) -> None:
        """Calibrate and send the codec's initial values (first edge), or receive them (other edges)."""
        channel = self.session.channel
        if self.index == 0:
            samples = map(self.placement.tensors, self.shard.samples(self.config.calibration_samples))
            with self.placement.autocast():
                calibration = calibrate(self.front, samples, DTYPES[self.config.codec_encoding])
            channel.send(codec_message(calibration.init, self.config.codec_encoding))
        else:
            self.front.initialize_codec(codec_init_of(channel.receive(), self.front.plan, CLOUD))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            self._step(step)
            self._finish_step(step + 1)
        # Closing the channel earlier could lose messages in flight.
        expect(self.session.channel.receive(), Done, CLOUD, self.schedule.total)

    def _step(self, step: int) -> None:
        """Take one optimizer step with up to ``credits`` micro-batches in flight.

        One-forward-one-backward schedule: run a backward pass if a gradient has arrived, otherwise a forward pass. A
        frozen front has no backward pass; only the channel's flow control limits its sending.
        """
        self.front.train()
        batch = self.shard.batch(self.plan, step)
        micros = deque(enumerate(split_micro(batch, self.config.micro_batches)))
        first = FirstMicroBatch(len(batch), len(micros))
        in_flight: deque[tuple[int, Codes]] = deque()
        while micros or in_flight:
            room = bool(micros) and len(in_flight) < self.config.credits
            reply = self._reply(block=not room) if in_flight else None
            if reply is not None:
                self._backward(*in_flight.popleft(), step, reply)
                continue
            micro, part = micros.popleft()
            codes = self._forward(part, step, micro, first if micro == 0 else MicroBatch())
            if self.trains:
                in_flight.append((micro, codes))
        if self.trains:
            self.optimizer.step()
            self.scheduler.step()
            self.gradients.clear()

    def _reply(self, *, block: bool) -> Message | None:
        try:
            return self.session.channel.receive(None if block else 0.0)
        except TimeoutError:
            return None

    def _forward(self, batch: Batch, step: int, micro: int, header: FirstMicroBatch | MicroBatch) -> Codes:
        self.dropout.reseed(step, micro)
        codes = self._codes(batch, update=True)
        self._send(header, step, micro, codes, batch)
        return codes

    def _codes(self, batch: Batch, *, update: bool = False) -> Codes:
        """Run the front; optionally ``update`` the running statistics of its codes."""
        inputs = inputs_of(batch)
        on_device = self.placement.tensors(inputs)
        with self.placement.autocast():
            padded, sentence = self.front.codes(**on_device)
        padded = padded.float()
        if update:
            self.front.statistics.update(padded, on_device["attention_mask"])
        rows = TokenRows(inputs["attention_mask"], self.config.ragged)
        return rows.gather(padded), None if sentence is None else sentence.float()

    def _send(self, header: Control, step: int, micro: int, codes: Codes, batch: Batch) -> None:
        self._expect_finite("codes", step, codes)
        tokens, sentence = codes
        vectors = None if sentence is None else floats_of(sentence)
        arrays = floats_of(tokens), vectors, batch.lengths, batch.labels
        tensors = batch_tensors(*arrays, self.config, self.front.statistics, self.max_length, self.classes)
        self.session.channel.send(header.message(step=step, micro=micro, tensors=tensors))

    def _backward(self, micro: int, codes: Codes, step: int, reply: Message) -> None:
        expect(reply, Gradient, CLOUD, step, micro)
        roots = {name: root for name, root in zip(("codes", "sentence"), codes, strict=True) if root is not None}
        gradients = read_weights(reply, {name: tuple(root.shape) for name, root in roots.items()}, CLOUD)
        self._expect_finite("gradients", step, gradients.values())
        on_device = self.placement.tensors(gradients)
        torch.autograd.backward(list(roots.values()), [on_device[name] for name in roots])

    def _expect_finite(self, what: str, step: int, tensors: Iterable[torch.Tensor | None]) -> None:
        if not all(torch.isfinite(t).all() for t in tensors if t is not None):
            raise RunFailedError(
                f"edge '{self.session.node}': the {what} of step {step + 1} are not finite",
                hint="lower learning_rate or codec_lr_factor",
            )

    # ---- after a step --------------------------------------------------------------------------------------------

    def _finish_step(self, done: int) -> None:
        if self.averaging and self.trains and self.schedule.averages(done):
            self.session.channel.send(FrontWeights().message(step=done, tensors=self.averaging.differences()))
            mean = self.session.channel.receive()
            expect(mean, FrontWeights, CLOUD, done)
            self.averaging.apply_mean(mean)
        if self.schedule.evaluates(done):
            self._evaluate(done)
        if self.schedule.saves(done):
            self._save(done)

    def _save(self, done: int) -> None:
        arrays = to_arrays(self.front, self.optimizer if self.trains else None)
        if self.averaging:
            arrays |= self.averaging.to_arrays()
        self.session.save_checkpoint(done, arrays, {})
        if not self.trains:
            # An edge that awaits no gradients could run ahead of the cloud until they have no checkpoint in common.
            expect(self.session.channel.receive(), Saved, CLOUD, done)

    @torch.no_grad()
    def _evaluate(self, done: int) -> None:
        """Send the codes of this edge's held-out examples, encoded as in training."""
        self.front.eval()
        self._send_evaluation(done, self.shard.held_out())
        if self.schedule.scores_spare(done):
            self._send_evaluation(done, self.shard.spare_batches())

    def _send_evaluation(self, done: int, batches: Iterator[Batch]) -> None:
        for micro, batch in enumerate(batches):
            self._send(EvaluationBatch(), done, micro, self._codes(batch), batch)
        self.session.channel.send(Evaluated().message(step=done))

    def _load(self, step: int) -> dict[str, Array]:
        arrays, _ = self.session.load_checkpoint(step)
        from_arrays(arrays, self.front, self.optimizer if self.trains else None)
        if self.trains:
            self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, step)
        return arrays
