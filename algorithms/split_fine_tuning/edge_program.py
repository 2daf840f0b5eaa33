"""The node program: raw text, tokeniser and the front of the model stay here; codes go up, gradients come down."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from ...core.errors import WireError
from ...core.message import Array, Message, Tensor
from ...core.session import NodeSession
from ...data.batches import Batch
from ..training_state import from_arrays, to_arrays
from .agreement import Offer, Schedule, shares
from .codes import CodeStatistics, code_tensors, small_integers
from .config import SplitFineTuning
from .fronts import trainable_arrays, weight_tensors
from .optimiser import make_optimiser, make_schedule
from .parts import build_front
from .ragged import flatten


class Edge:
    """Trains one edge's front against the cloud's trunk."""

    def __init__(self, session: NodeSession, config: SplitFineTuning) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.session = session
        self.config = config
        self.place = session.run.nodes.index(session.node)
        self.count = len(session.run.nodes)
        self.share = shares(config.batch_size, self.count)[self.place]
        self.parts = build_front(config, session.run.seed, session.data, self.place, self.count, self.share)
        self.front = self.parts.module
        self.dropout = self.parts.dropout
        self.statistics = CodeStatistics(self.parts.width)
        self.schedule = self._agree()
        self.optimiser, self.scheduler = make_optimiser(self.front, config, self.schedule.total)
        self.first_step = 0
        if session.resume_step is not None:
            self._load(session.resume_step)
        else:
            self._share_codec()

    # ---- before the first step -----------------------------------------------------------------------------------

    def _agree(self) -> Schedule:
        channel = self.session.channel
        offer = Offer(self.parts.plan, self.parts.fingerprint, self.parts.batches.steps_per_epoch, self.share)
        channel.send(offer.message())
        reply = channel.receive()
        if reply.kind != "control" or reply.fields.get("what") != "schedule":
            raise WireError(f"expected the cloud's schedule, got a '{reply.kind}' message")
        return Schedule(int(reply.fields["steps_per_epoch"]), self.config)

    def _share_codec(self) -> None:
        """The first edge calibrates on its own examples and sends the few matrices that both sides need."""
        channel = self.session.channel
        if self.place == 0:
            state = self.parts.calibrate()
            tensors = {n: Tensor(np.ascontiguousarray(t.detach().numpy())) for n, t in state.items()}
            channel.send(Message("codec", tensors=tensors))
        else:
            message = channel.receive()
            self.parts.load_codec({n: torch.from_numpy(np.array(t.array)) for n, t in message.tensors.items()})

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
        epoch, index = self.schedule.place(step)
        micros = deque(self.parts.batches.batch(epoch, index).micro(self.config.micro_batches))
        count = len(micros)
        flying: deque[torch.Tensor] = deque()
        sent = 0
        while micros or flying:
            room = bool(micros) and len(flying) < self.config.credits
            reply = self._reply(block=not room) if flying else None
            if reply is not None:
                self._backward(flying.popleft(), reply)
            else:
                flying.append(self._forward(micros.popleft(), step, sent, count))
                sent += 1
        self.optimiser.step()
        self.scheduler.step()

    def _reply(self, *, block: bool) -> Message | None:
        try:
            return self.session.channel.receive(None if block else 0.0)
        except TimeoutError:
            return None

    def _forward(self, batch: Batch, step: int, micro: int, count: int) -> torch.Tensor:
        self.dropout.at(step, micro)
        codes = self._codes(batch)
        flat = codes.detach().numpy()
        self.statistics.observe(flat)
        fields = {"examples": self.share, "micros": count}
        self._send("activation", step, micro, flat, batch, fields if micro == 0 else {})
        return codes

    def _codes(self, batch: Batch) -> torch.Tensor:
        """Codes ``[M, w]`` of a batch: real tokens only on a ragged wire, else all ``B * T`` of them."""
        mask = torch.from_numpy(batch.attention_mask)
        codes: torch.Tensor = self.front(torch.from_numpy(batch.input_ids), mask)
        return flatten(codes, mask) if self.config.ragged else codes.flatten(0, 1)

    def _send(
        self, kind: str, step: int, micro: int, codes: Array, batch: Batch, fields: dict[str, int]
    ) -> None:
        tensors = code_tensors(codes, self.config.up, self.statistics)
        tensors["lengths"] = small_integers(batch.lengths, self.parts.max_length)
        tensors["labels"] = small_integers(batch.labels, self.parts.classes - 1)
        self.session.channel.send(Message(kind, step=step, micro=micro, tensors=tensors, fields=fields))

    def _backward(self, codes: torch.Tensor, reply: Message) -> None:
        if reply.kind != "gradient":
            raise WireError(f"expected a gradient, got a '{reply.kind}' message")
        gradient = torch.from_numpy(np.array(reply.array("codes"), np.float32))
        if gradient.shape != codes.shape:
            raise WireError(f"the gradient has shape {tuple(gradient.shape)}, the codes {tuple(codes.shape)}")
        codes.backward(gradient)  # type: ignore[no-untyped-call]

    # ---- after a step --------------------------------------------------------------------------------------------

    def _after(self, done: int) -> None:
        if self.schedule.averages(done):
            self._average(done)
        if self.schedule.evaluates(done):
            self._evaluate(done)
        if self.schedule.saves(done):
            arrays = {**to_arrays(self.front, self.optimiser), **self.statistics.state()}
            self.session.save_checkpoint(done, arrays, {})

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
        for number, batch in enumerate(self.parts.held_out):
            self._send("evaluation", done, number, self._codes(batch).numpy(), batch, {})
        self.session.channel.send(Message("control", step=done, fields={"what": "evaluated"}))

    def _load(self, step: int) -> None:
        arrays, _ = self.session.load_checkpoint(step)
        from_arrays(arrays, self.front, self.optimiser)
        self.statistics.load(arrays)
        self.scheduler = make_schedule(self.optimiser, self.config, self.schedule.total, step)
        self.first_step = step
