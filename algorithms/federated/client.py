"""A node's side of a federated run: it trains whenever a state comes down, until the server says goodbye."""

from __future__ import annotations

import torch

from ...core.errors import WireError
from ...core.message import Message
from ...core.session import NodeSession
from .messages import Encodings, arrays, update_message
from .task import Task


class Client:
    """The node program of one client.

    Parameters
    ----------
    session : NodeSession
    task : Task
    encodings : Encodings
        Of its update.
    """

    def __init__(self, session: NodeSession, task: Task, encodings: Encodings) -> None:
        self._session, self._task, self._encodings = session, task, encodings
        self._number = session.shard[0]
        self._flat = task.model()
        self._method = task.method(self._flat)
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
            else:
                raise WireError(f"the server sent a '{message.kind}' where a round was expected")

    def _train(self, message: Message) -> None:
        work = self._task.work(self._flat, self._number, message.round)
        work.memory = self._memory
        update = self._method.local(self._flat, arrays(message), work)
        self._session.channel.send(update_message(message.round, update, self._encodings))
