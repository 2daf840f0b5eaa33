"""The node program: raw text, tokenizer and the front of the model stay here; codes go up, gradients come down."""

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
from .wire_codec import DTYPES, batch_tensors, codes_of, start_message, start_of

#: Codes of a micro-batch's tokens ``[M, w]`` and, where the plan has them, of its sentences ``[B, q]``.
Codes: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


class EdgeProgram:
    """Trains one edge's front against the cloud's trunk."""

    def __init__(self, session: NodeSession, config: SplitFineTuning) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.session = session
        self.config = config
        self.place = session.run.nodes.index(session.node)
        builder = Builder(config, session.run.seed, session.data)
        self.front, tokenizer = builder.front()
        task = builder.task(tokenizer)
        self.labels, self.classes, self.max_length = task.labels, task.classes, task.max_length
        self.shard = task.shard(*session.shard)
        seed = session.run.seed.child("dropout", "front", self.place)
        self.dropout = DropoutSeeds(self.front, seed)
        self.trains = freeze(self.front, config.freeze)
        self.schedule = self._agree()
        share = shares(config.batch_size, len(session.run.nodes))[self.place]
        self.plan = self.shard.plan(share, self.schedule.steps_per_epoch)
        self.gradients = RowGradients(self.front)
        if self.trains:
            self.optimizer, self.scheduler = make_optimizer(self.front, config, self.schedule.total)
        self.first_step = session.resume_step or 0
        saved = None if session.resume_step is None else self._load(session.resume_step)
        if saved is None:
            self._settle_codec()
        self.common = FrontAverage(self.front, config.average_encoding) if config.average_every else None
        if self.common and saved is not None:
            self.common.from_arrays(saved)

    # ---- before the first step -----------------------------------------------------------------------------------

    def _agree(self) -> Schedule:
        channel = self.session.channel
        parameters = sum(p.numel() for p in self.front.parameters())
        examples = len(self.shard.train)
        channel.send(Offer(self.front.plan, examples, parameters, digest_of(self.labels), self.trains).message())
        steps = self._told("schedule").fields.get("steps_per_epoch")
        if not isinstance(steps, int) or steps < 1:
            raise WireError(f"the cloud's schedule has {steps!r} steps per epoch")
        return Schedule(steps, self.config)

    def _told(self, what: str) -> Message:
        """Wait for the cloud's control message ``what``."""
        reply = self.session.channel.receive()
        if reply.kind != "control" or reply.fields.get("what") != what:
            raise WireError(f"expected the cloud's '{what}', got a '{reply.kind}' message")
        return reply

    def _settle_codec(self) -> None:
        """The first edge calibrates on its own examples and sends what the cloud and the other edges need of it."""
        channel = self.session.channel
        if self.place == 0:
            samples = self.shard.samples(self.config.calibration_samples)
            found = calibrate(self.front, samples, DTYPES[self.config.codec_encoding])
            channel.send(start_message(found.start, self.config.codec_encoding))
        else:
            self.front.take(start_of(channel.receive(), self.front.plan))

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            self._step(step)
            self._after(step + 1)
        self._told("done")  # nothing may be lost by leaving early

    def _step(self, step: int) -> None:
        """One optimizer step, micro-batches in flight: backward whenever a gradient waits, else forward (1F1B).

        A frozen front has no backward: its codes leave as fast as the channel's window lets them.
        """
        self.front.train()
        batch = self.shard.batch(self.plan, step)
        micros = deque(enumerate(split_micro(batch, self.config.micro_batches)))
        head = {"examples": len(batch), "micros": len(micros)}
        flying: deque[tuple[int, Codes]] = deque()
        while micros or flying:
            room = bool(micros) and len(flying) < self.config.credits
            reply = self._reply(block=not room) if flying else None
            if reply is not None:
                self._backward(*flying.popleft(), step, reply)
                continue
            number, part = micros.popleft()
            codes = self._forward(part, step, number, head if number == 0 else {})
            if self.trains:
                flying.append((number, codes))
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
        self.dropout.at(step, micro)
        padded, sentence = self.front.codes(**inputs_of(batch))
        mask = torch.from_numpy(batch.attention_mask)
        self.front.statistics.update(padded, mask)
        codes = self._codes(padded, mask), sentence
        self._send("activation", step, micro, codes, batch, fields)
        return codes

    def _codes(self, padded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Codes ``[M, w]``: real tokens only on a ragged wire, else all ``B * T`` of them."""
        return flatten(padded, mask) if self.config.ragged else padded.flatten(0, 1)

    def _send(self, kind: str, step: int, micro: int, codes: Codes, batch: Batch, fields: dict[str, int]) -> None:
        tokens, sentence = codes
        self._expect_finite("codes", step, codes)
        vectors = None if sentence is None else sentence.detach().numpy()
        numbers = tokens.detach().numpy(), vectors, batch.lengths, batch.labels
        tensors = batch_tensors(*numbers, self.config, self.front.statistics, self.max_length, self.classes)
        self.session.channel.send(Message(kind, step=step, micro=micro, tensors=tensors, fields=fields))

    def _backward(self, number: int, codes: Codes, step: int, reply: Message) -> None:
        if (reply.kind, reply.step, reply.micro) != ("gradient", step, number):
            raise WireError(f"expected gradient {step}.{number}, got '{reply.kind}' {reply.step}.{reply.micro}")
        roots: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for name, root in zip(("codes", "sentence"), codes, strict=True):
            if root is None:
                continue
            gradient = codes_of(reply, name)
            if gradient.shape != root.shape:
                raise WireError(f"the gradient of {name} has shape {tuple(gradient.shape)}, not {tuple(root.shape)}")
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

    def _after(self, done: int) -> None:
        if self.common and self.trains and self.schedule.averages(done):
            self.session.channel.send(Message("weights", step=done, tensors=self.common.moved()))
            self.common.take(self.session.channel.receive())
        if self.schedule.evaluates(done):
            self._evaluate(done)
        if self.schedule.saves(done):
            self._save(done)

    def _save(self, done: int) -> None:
        arrays = to_arrays(self.front, self.optimizer if self.trains else None)
        if self.common:
            arrays |= self.common.to_arrays()
        self.session.save_checkpoint(done, arrays, {})
        if not self.trains:
            # Without gradients to wait for, this edge could be checkpoints ahead: both sides would share none.
            self._told("saved")

    @torch.no_grad()
    def _evaluate(self, done: int) -> None:
        """This edge's part of the held-out examples, through the same wire as in training."""
        self.front.eval()
        self._send_evaluation(done, self.shard.held_out())
        if self.schedule.scores_spare(done):
            self._send_evaluation(done, self.shard.spare_batches())

    def _send_evaluation(self, done: int, batches: Iterator[Batch]) -> None:
        for number, batch in enumerate(batches):
            padded, sentence = self.front.codes(**inputs_of(batch))
            codes = self._codes(padded, torch.from_numpy(batch.attention_mask)), sentence
            self._send("evaluation", done, number, codes, batch, {})
        self.session.channel.send(Message("control", step=done, fields={"what": "evaluated"}))

    def _load(self, step: int) -> dict[str, Array]:
        arrays, _ = self.session.load_checkpoint(step)
        from_arrays(arrays, self.front, self.optimizer if self.trains else None)
        if self.trains:
            self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, step)
        return arrays
