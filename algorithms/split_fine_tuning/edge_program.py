"""The node program: raw text, tokeniser and the front of the model stay here; codes go up, gradients come down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch

from ...core.errors import WireError
from ...core.message import Message, Tensor
from ...core.session import NodeSession
from ...data.batches import Batch, split_micro
from ..training_state import from_arrays, to_arrays
from .agreement import Offer, Schedule, shares
from .calibration import calibrate
from .codes import CASTS, code_tensors, codes_of, small_integers
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .fronts import trainable_arrays, weight_tensors
from .optimiser import make_optimiser, make_schedule
from .parts import Builder, inputs_of
from .ragged import flatten
from .training import freeze

#: Codes of a micro-batch's tokens ``[M, w]`` and, where the plan has them, of its sentences ``[B, q]``.
Codes: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


class Edge:
    """Trains one edge's front against the cloud's trunk."""

    def __init__(self, session: NodeSession, config: SplitFineTuning) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.session = session
        self.config = config
        self.place = session.run.nodes.index(session.node)
        builder = Builder(config, session.run.seed, session.data)
        self.front, tokenizer = builder.front()
        task = builder.task(tokenizer)
        self.classes, self.max_length = task.classes, task.max_length
        self.shard = task.shard(*session.shard)
        seed = session.run.seed.child("dropout", "front", self.place)
        self.dropout = DropoutSeeds(self.front, seed)
        self.trains = freeze(self.front, config.freeze)
        self.schedule = self._agree()
        share = shares(config.batch_size, len(session.run.nodes))[self.place]
        self.plan = self.shard.plan(share, self.schedule.steps_per_epoch)
        self.optimiser, self.scheduler = make_optimiser(self.front, config, self.schedule.total)
        self.first_step = 0
        if session.resume_step is not None:
            self._load(session.resume_step)
        else:
            self._settle_codec()

    # ---- before the first step -----------------------------------------------------------------------------------

    def _agree(self) -> Schedule:
        channel = self.session.channel
        parameters = sum(p.numel() for p in self.front.parameters())
        channel.send(Offer(self.front.plan, len(self.shard.train), parameters).message())
        reply = channel.receive()
        if reply.kind != "control" or reply.fields.get("what") != "schedule":
            raise WireError(f"expected the cloud's schedule, got a '{reply.kind}' message")
        return Schedule(int(reply.fields["steps_per_epoch"]), self.config)

    def _settle_codec(self) -> None:
        """The first edge calibrates on its own examples and sends the few matrices that the others need."""
        channel = self.session.channel
        if self.place == 0:
            found = calibrate(self.front, self.shard.samples(self.config.calibration_samples))
            parts = {f"trunk.{n}": t for n, t in found.trunk.items()}
            parts |= {f"front.{n}": t for n, t in found.front.items()}
            parts |= {"statistics.mean": found.code_mean, "statistics.variance": found.code_variance}
            tensors = {n: Tensor(np.ascontiguousarray(t.numpy())) for n, t in parts.items()}
            channel.send(Message("codec", tensors=tensors))
        else:
            message = channel.receive()
            parts = {n: torch.from_numpy(np.array(t.array)) for n, t in message.tensors.items()}
            self.front.load_codec_state(
                {n.removeprefix("front."): t for n, t in parts.items() if n.startswith("front.")}
            )
            self.front.statistics.set(parts["statistics.mean"], parts["statistics.variance"])
            self.front.forget_first()

    # ---- the steps -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end."""
        for step in range(self.first_step, self.schedule.total):
            self.session.check_cancelled()
            self._step(step)
            self._after(step + 1)
        self.session.channel.receive()  # the cloud is done; nothing may be lost by leaving early

    def _step(self, step: int) -> None:
        """One optimiser step, micro-batches in flight: backward whenever a gradient waits, else forward (1F1B)."""
        self.front.train()
        self.optimiser.zero_grad(set_to_none=True)
        batch = self.shard.batch(self.plan, step)
        micros = deque(split_micro(batch, self.config.micro_batches))
        count = len(micros)
        flying: deque[Codes] = deque()
        sent = 0
        while micros or flying:
            room = bool(micros) and len(flying) < self.config.credits
            reply = self._reply(block=not room) if flying else None
            if reply is not None:
                self._backward(flying.popleft(), reply)
            else:
                fields = {"examples": len(batch), "micros": count} if sent == 0 else {}
                flying.append(self._forward(micros.popleft(), step, sent, fields))
                sent += 1
        self.optimiser.step()
        self.scheduler.step()

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
        tensors = code_tensors(tokens.detach().numpy(), self.config.up, self.front.statistics)
        if sentence is not None:
            tensors["sentence"] = Tensor(sentence.detach().numpy(), CASTS[self.config.sentence_up])
        tensors["lengths"] = small_integers(batch.lengths, self.max_length)
        tensors["labels"] = small_integers(batch.labels, self.classes - 1)
        self.session.channel.send(Message(kind, step=step, micro=micro, tensors=tensors, fields=fields))

    def _backward(self, codes: Codes, reply: Message) -> None:
        if reply.kind != "gradient":
            raise WireError(f"expected a gradient, got a '{reply.kind}' message")
        if not self.trains:
            return
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
        torch.autograd.backward(roots, gradients)

    # ---- after a step --------------------------------------------------------------------------------------------

    def _after(self, done: int) -> None:
        if self.schedule.averages(done):
            self._average(done)
        if self.schedule.evaluates(done):
            self._evaluate(done)
        if self.schedule.saves(done):
            self.session.save_checkpoint(done, to_arrays(self.front, self.optimiser), {})

    def _average(self, done: int) -> None:
        mine = trainable_arrays(self.front)
        channel = self.session.channel
        channel.send(Message("weights", step=done, tensors=weight_tensors(mine, self.config.average_encoding)))
        mean = channel.receive()
        with torch.no_grad():
            for name, parameter in self.front.named_parameters():
                if name in mean.tensors:
                    parameter.copy_(torch.from_numpy(np.array(mean.array(name), np.float32)))

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

    def _load(self, step: int) -> None:
        arrays, _ = self.session.load_checkpoint(step)
        from_arrays(arrays, self.front, self.optimiser)
        self.front.forget_first()
        self.scheduler = make_schedule(self.optimiser, self.config, self.schedule.total, step)
        self.first_step = step
