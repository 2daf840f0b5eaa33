"""A node's side of a federated run: it trains whenever a state comes down, until the server says goodbye."""

from __future__ import annotations

import numpy as np
import torch

from ...core.errors import WireError
from ...core.message import Message
from ...core.session import NodeSession
from .assets import Assets, answer
from .codec import UpdateCodec
from .task import Task
from .tree import Part


class Client:
    """The node program of one client.

    Parameters
    ----------
    session : NodeSession
    task : Task
    codec : Codec
    briefing : Briefing, optional
        What it must hold before its first round.
    """

    def __init__(self, session: NodeSession, task: Task, codec: UpdateCodec, briefing: Assets | None = None) -> None:
        self._session, self._task, self._codec, self._briefing = session, task, codec, briefing
        self._number = session.shard[0]
        self._flat = task.model()
        self._method = task.method(self._flat)
        self._state = _outline(self._method.sent(self._method.start(self._flat)))
        self._memory: dict[str, torch.Tensor] = {}
        if session.resume_step is not None:
            kept, _ = session.load_checkpoint(session.resume_step)
            self._memory = {name: torch.from_numpy(array.copy()) for name, array in kept.items()}

    def run(self) -> None:
        """Serve rounds until the server's goodbye."""
        while True:
            message = self._session.channel.receive()
            what = message.fields.get("what")
            if message.kind == "model":
                self._train(message)
            elif message.kind == "control" and what == "keep":
                kept = {name: tensor.numpy() for name, tensor in self._memory.items()}
                self._session.save_checkpoint(message.round, kept, {})
                self._session.channel.send(Message("control", round=message.round, fields={"what": "kept"}))
            elif message.kind == "control" and what == "done":
                return
            elif self._briefing is not None and message.kind == "control" and what == "offer":
                has = self._briefing.has(dict(message.fields))
                self._session.channel.send(answer(message.round, has=has))
            elif self._briefing is not None and message.kind == "virtual":
                self._briefing.take(message)
            else:
                raise WireError(f"the server sent a '{message.kind}' where a round was expected")

    def _train(self, message: Message) -> None:
        work = self._task.work(self._flat, self._number, message.round)
        work.memory = self._memory
        seen = self._codec.state(message, self._state)
        update = self._method.local(self._flat, seen, work)
        self._session.channel.send(self._codec.up(message.round, update, seen, self._memory))


def _outline(state: Part) -> Part:
    """Arrays of the same names, shapes and types that take no memory."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in state.items()}
