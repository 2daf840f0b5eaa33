"""The node program of a federated client: trains on each state it receives until the server ends the run."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from ...core.control import Protocol
from ...core.devices import ComputeSettings
from ...core.expectations import Expected
from ...core.message import Message
from ...core.session import NodeSession
from ..assets.cache import AssetCache
from ..assets.protocol import FROM_SERVER as ASSETS
from ..assets.receiver import AssetReceiver
from .assets import Assets
from .client_state import ClientState
from .client_training import CannotTrain, attempt, prepare
from .codec import UpdateCodec
from .compute import resident_model
from .messages import STATE, Done, Keep, Kept, declined_message
from .methods import Update
from .task import Task
from .tree import NamedArrays

_FROM_SERVER: Protocol[Keep | Done] = Protocol(Keep, Done)


class Client:
    """The node program of one client.

    Parameters
    ----------
    session : NodeSession
    task : Task
    codec : UpdateCodec
    assets : Assets, optional
        What the client needs before its first round.
    compute : ComputeSettings, optional
        Device and precision of its training.
    """

    def __init__(
        self,
        session: NodeSession,
        task: Task,
        codec: UpdateCodec,
        assets: Assets | None = None,
        compute: ComputeSettings | None = None,
    ) -> None:
        self._session, self._task, self._codec = session, task, codec
        self._receiver = _receiver(session, assets) if assets else None
        self._client = session.shard[0]
        self._flat = resident_model(task, compute or ComputeSettings())
        self._method = task.method(self._flat)
        self._expected_state = _placeholders(self._method.sent(self._method.start(self._flat)))
        size = sum(array.nbytes for array in self._expected_state.values())
        session.channel.expect({STATE: Expected(dense_bytes=size)})
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
        DataError, StorageError
            The run's assets cannot be used or stored.
        """
        channel = self._session.channel
        while True:
            message = channel.receive()
            if message.kind == STATE:
                self._train(message)
                continue
            if self._receiver is not None and ASSETS.accepts(message):
                if (answer := self._receiver.answer(message)) is not None:
                    channel.send(answer)
                continue
            match _FROM_SERVER.read(message, "the server"):
                case Keep():
                    saved = {name: tensor.numpy() for name, tensor in self._client_state.items()}
                    self._session.save_checkpoint(message.round, saved, {})
                    channel.send(Kept().message(round=message.round))
                case Done():
                    return

    def _train(self, message: Message) -> None:
        received = self._codec.decode_state(message, self._expected_state)
        update = self._update(message.round, received)
        if isinstance(update, CannotTrain):
            self._session.channel.send(declined_message(message.round, update.reason))
        else:
            self._session.channel.send(self._codec.encode_update(message.round, update, received, self._client_state))

    def _update(self, round_index: int, received: NamedArrays) -> Update | CannotTrain:
        work = prepare(partial(self._task.work, self._flat, self._client, round_index))
        if isinstance(work, CannotTrain):
            return work
        work.client_state = self._client_state
        return attempt(partial(self._method.local, self._flat, received, work))


def _receiver(session: NodeSession, assets: Assets) -> AssetReceiver:
    """Fetch assets to this machine's cache."""
    cache = AssetCache(session.cache / "assets")
    return AssetReceiver(cache, lambda asset: assets.use(asset, cache))


def _placeholders(state: NamedArrays) -> NamedArrays:
    """Arrays of the same names, shapes and dtypes that occupy no memory."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in state.items()}
