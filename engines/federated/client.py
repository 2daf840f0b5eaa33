"""The node program of a federated client: trains on each state it receives until the server ends the run."""

from __future__ import annotations

import numpy as np
import torch

from ...core.errors import WireError
from ...core.message import Message
from ...core.session import NodeSession
from .assets import Assets, offer_reply
from .client_state import ClientState
from .codec import UpdateCodec
from .task import Task
from .tree import NamedArrays


class Client:
    """The node program of one client.

    Parameters
    ----------
    session : NodeSession
    task : Task
    codec : UpdateCodec
    assets : Assets, optional
        What the client needs before its first round.
    """

    def __init__(self, session: NodeSession, task: Task, codec: UpdateCodec, assets: Assets | None = None) -> None:
        self._session, self._task, self._codec, self._assets = session, task, codec, assets
        self._client = session.shard[0]
        self._flat = task.model()
        self._method = task.method(self._flat)
        self._expected_state = _placeholders(self._method.sent(self._method.start(self._flat)))
        self._client_state: ClientState = {}
        if session.resume_step is not None:
            saved, _ = session.load_checkpoint(session.resume_step)
            self._client_state = {name: torch.from_numpy(array.copy()) for name, array in saved.items()}

    def run(self) -> None:
        """Serve rounds until the server's ``done`` message.

        Raises
        ------
        WireError
            The server sent an unexpected message, or a state of another model.
        """
        while True:
            message = self._session.channel.receive()
            what = message.fields.get("what")
            if message.kind == "model":
                self._train(message)
            elif message.kind == "control" and what == "keep":
                saved = {name: tensor.numpy() for name, tensor in self._client_state.items()}
                self._session.save_checkpoint(message.round, saved, {})
                self._session.channel.send(Message("control", round=message.round, fields={"what": "kept"}))
            elif message.kind == "control" and what == "done":
                return
            elif self._assets is not None and message.kind == "control" and what == "offer":
                has = self._assets.has(dict(message.fields))
                self._session.channel.send(offer_reply(message.round, has=has))
            elif self._assets is not None and message.kind == "virtual":
                self._assets.accept(message)
            else:
                raise WireError(f"unexpected '{message.kind}' message from the server while waiting for a round")

    def _train(self, message: Message) -> None:
        work = self._task.work(self._flat, self._client, message.round)
        work.client_state = self._client_state
        received = self._codec.decode_state(message, self._expected_state)
        update = self._method.local(self._flat, received, work)
        self._session.channel.send(self._codec.encode_update(message.round, update, received, self._client_state))


def _placeholders(state: NamedArrays) -> NamedArrays:
    """Arrays of the same names, shapes and dtypes that occupy no memory."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in state.items()}
