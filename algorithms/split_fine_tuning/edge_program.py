"""Node program of split fine-tuning: trains the front on local text; sends codes and receives their gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from ...core.session import NodeSession
from ...data.batches import Batch, split_micro
from ...models.state_arrays import from_arrays, to_arrays
from .builders import Builder, inputs_of
from .calibration import calibrate
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .front_averaging import FrontAverage
from .handshake import Offer, Schedule, digest_of, shares
from .optimizer import make_optimizer, make_schedule
from .ragged import flatten
from .row_gradients import RowGradients
from .training import freeze
from .wire_codec import DTYPES, batch_tensors, codec_init_of, codec_message, codes_of

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
        self.front, tokenizer = builder.front()
        task = builder.task(tokenizer)
        self.labels, self.classes, self.max_length = task.labels, task.classes, task.max_length
        self.shard = task.shard(*session.shard)
        seed = session.run.seed.child("dropout", "front", self.index)
        self.dropout = DropoutSeeds(self.front, seed)
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
        parameters = sum(p.numel() for p in self.front.parameters())
        examples = len(self.shard.train)
        channel.send(Offer(self.front.plan, examples, parameters, digest_of(self.labels), self.trains).to_message())
        steps = self._expect_control("schedule").fields.get("steps_per_epoch")
        if not isinstance(steps, int) or steps < 1:
            raise WireError(f"invalid schedule from the cloud: {steps!r} steps per epoch")
        return Schedule(steps, self.config)

    def _expect_control(self, what: str) -> Message:
        """Receive the cloud's control message ``what``."""
        reply = self.session.channel.receive()
        if reply.kind != "control" or reply.fields.get("what") != what:
            raise WireError(f"expected control message '{what}' from the cloud, got '{reply.kind}'")
        return reply

    def _initialize_codec(self) -> None:
        """Calibrate and send the codec's initial values (first edge), or receive them (other edges)."""
        channel = self.session.channel
        if self.index == 0:
            samples = self.shard.samples(self.config.calibration_samples)
            calibration = calibrate(self.front, samples, DTYPES[self.config.codec_encoding])
            channel.send(codec_message(calibration.init, self.config.codec_encoding))
        else:
            self.front.initialize_codec(codec_init_of(channel.receive(), self.front.plan))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            self._step(step)
            self._finish_step(step + 1)
        self._expect_control("done")  # closing the channel earlier could lose messages in flight

    def _step(self, step: int) -> None:
        """Take one optimizer step with up to ``credits`` micro-batches in flight.

        One-forward-one-backward schedule: run a backward pass if a gradient has arrived, otherwise a forward pass. A
        frozen front has no backward pass; only the channel's flow control limits its sending.
        """
        self.front.train()
        batch = self.shard.batch(self.plan, step)
        micros = deque(enumerate(split_micro(batch, self.config.micro_batches)))
        head = {"examples": len(batch), "micros": len(micros)}
        in_flight: deque[tuple[int, Codes]] = deque()
        while micros or in_flight:
            room = bool(micros) and len(in_flight) < self.config.credits
            reply = self._reply(block=not room) if in_flight else None
            if reply is not None:
                self._backward(*in_flight.popleft(), step, reply)
                continue
            micro, part = micros.popleft()
            codes = self._forward(part, step, micro, head if micro == 0 else {})
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

    def _forward(self, batch: Batch, step: int, micro: int, fields: dict[str, int]) -> Codes:
        self.dropout.reseed(step, micro)
        padded, sentence = self.front.codes(**inputs_of(batch))
        mask = torch.from_numpy(batch.attention_mask)
        self.front.statistics.update(padded, mask)
        codes = self._codes(padded, mask), sentence
        self._send("activation", step, micro, codes, batch, fields)
        return codes

    def _codes(self, padded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return codes [M, w] of the real tokens, or of all B·T positions unless ``ragged``."""
        return flatten(padded, mask) if self.config.ragged else padded.flatten(0, 1)

    def _send(self, kind: str, step: int, micro: int, codes: Codes, batch: Batch, fields: dict[str, int]) -> None:
        tokens, sentence = codes
        self._expect_finite("codes", step, codes)
        vectors = None if sentence is None else sentence.detach().numpy()
        arrays = tokens.detach().numpy(), vectors, batch.lengths, batch.labels
        tensors = batch_tensors(*arrays, self.config, self.front.statistics, self.max_length, self.classes)
        self.session.channel.send(Message(kind, step=step, micro=micro, tensors=tensors, fields=fields))

    def _backward(self, micro: int, codes: Codes, step: int, reply: Message) -> None:
        if (reply.kind, reply.step, reply.micro) != ("gradient", step, micro):
            raise WireError(f"expected gradient {step}.{micro}, got '{reply.kind}' {reply.step}.{reply.micro}")
        roots: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for name, root in zip(("codes", "sentence"), codes, strict=True):
            if root is None:
                continue
            gradient = codes_of(reply, name)
            if gradient.shape != root.shape:
                raise WireError(f"gradient of {name}: expected shape {tuple(root.shape)}, got {tuple(gradient.shape)}")
            roots.append(root)
            gradients.append(gradient)
        self._expect_finite("gradients", step, gradients)
        torch.autograd.backward(roots, gradients)

    def _expect_finite(self, what: str, step: int, tensors: Iterable[torch.Tensor | None]) -> None:
        if not all(torch.isfinite(t).all() for t in tensors if t is not None):
            raise RunFailedError(
                f"edge '{self.session.node}': the {what} of step {step + 1} are not finite",
                hint="lower learning_rate or codec_lr_factor",
            )

    # ---- after a step --------------------------------------------------------------------------------------------

    def _finish_step(self, done: int) -> None:
        if self.averaging and self.trains and self.schedule.averages(done):
            self.session.channel.send(Message("weights", step=done, tensors=self.averaging.differences()))
            self.averaging.apply_mean(self.session.channel.receive())
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
            self._expect_control("saved")

    @torch.no_grad()
    def _evaluate(self, done: int) -> None:
        """Send the codes of this edge's held-out examples, encoded as in training."""
        self.front.eval()
        self._send_evaluation(done, self.shard.held_out())
        if self.schedule.scores_spare(done):
            self._send_evaluation(done, self.shard.spare_batches())

    def _send_evaluation(self, done: int, batches: Iterator[Batch]) -> None:
        for micro, batch in enumerate(batches):
            padded, sentence = self.front.codes(**inputs_of(batch))
            codes = self._codes(padded, torch.from_numpy(batch.attention_mask)), sentence
            self._send("evaluation", done, micro, codes, batch, {})
        self.session.channel.send(Message("control", step=done, fields={"what": "evaluated"}))

    def _load(self, step: int) -> dict[str, Array]:
        arrays, _ = self.session.load_checkpoint(step)
        from_arrays(arrays, self.front, self.optimizer if self.trains else None)
        if self.trains:
            self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, step)
        return arrays
