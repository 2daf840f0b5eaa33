"""The clients of a run that are real nodes: each round the cohort gets the state and whoever answers is added up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...core.errors import PeerLostError
from ...core.message import Encoding, Message, Tensor
from ...core.session import ServerSession
from .methods import Method, Update
from .tree import Part, TreeSum


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server keeps of a client's update.

    Attributes
    ----------
    client : int
    samples, steps : int
    loss : float
        Mean over the client's steps.
    """

    client: int
    samples: int
    steps: int
    loss: float


@dataclass(slots=True)
class Gathered:
    """A round's outcome.

    Attributes
    ----------
    total : dict of arrays or None
        The sum of the contributions; None if nobody's came.
    replies : list of Reply
        In cohort order.
    missing : dict
        Client -> why nothing of it was added.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)


class Fleet(Protocol):
    """Whoever does the clients' part of a run."""

    @property
    def population(self) -> int:
        """How many clients there are."""

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Have the cohort train from ``down`` and add up what it sends."""

    def keep(self, number: int) -> None:
        """Have every client that remembers something save it as of this round."""


class NodeFleet:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    Parameters
    ----------
    session : ServerSession
    encodings : Mapping[str, Encoding]
        How the named arrays of the state travel; raw where none is given.
    deadline : float
        Seconds that a round waits for replies; 0 = until everybody has answered or is lost.
    """

    def __init__(self, session: ServerSession, encodings: Mapping[str, Encoding], deadline: float = 0.0) -> None:
        self._session, self._encodings, self._deadline = session, encodings, deadline
        self._names = list(session.channels)
        self._lost: dict[int, str] = {}

    @property
    def population(self) -> int:
        """How many nodes there are."""
        return len(self._names)

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """See :class:`Fleet`; a node that is lost, late or sends what does not fit is left out, and named."""
        tree, gathered = TreeSum(len(cohort)), Gathered()
        replies: dict[int, Reply] = {}
        waiting = {self._names[client]: place for place, client in enumerate(cohort)}

        def leave_out(name: str, why: str) -> None:
            place = waiting.pop(name)
            tree.skip(place)
            gathered.missing[cohort[place]] = why
            self._session.log(f"round {number}: without {name}: {why}")

        message = Message(
            "model", round=number, tensors={n: Tensor(a, self._encodings.get(n)) for n, a in down.items()}
        )
        for name in list(waiting):
            try:
                self._session.channels[name].send(message)
            except PeerLostError as error:
                leave_out(name, str(error))
        end = time.monotonic() + self._deadline
        while waiting:
            try:
                left = max(0.0, end - time.monotonic()) if self._deadline else None
                name, answer = self._session.receive_any(list(waiting), left)
                if answer.round < number:  # of a round that did not wait for it
                    continue
                update = read_update(answer, number, method.reply(down))
            except PeerLostError as error:
                leave_out(error.name, str(error))
            except TimeoutError:
                for name in list(waiting):
                    leave_out(name, f"no answer within {self._deadline:g} s")
            except UpdateError as error:
                leave_out(name, str(error))
            else:
                place = waiting.pop(name)
                tree.add(place, method.contribution(down, update))
                replies[place] = Reply(cohort[place], update.samples, update.steps, update.loss)
        gathered.total = tree.total()
        gathered.replies = [replies[place] for place in sorted(replies)]
        return gathered

    def keep(self, number: int) -> None:
        """Tell all nodes to save what they remember."""
        for channel in self._session.channels.values():
            try:
                channel.send(Message("control", round=number, fields={"what": "keep"}))
            except PeerLostError:
                continue


class UpdateError(Exception):
    """An update is not one: of other shapes, not finite, of another round."""


def read_update(message: Message, number: int, expected: Part) -> Update:
    """Check a client's update against the arrays that its method sends.

    Raises
    ------
    UpdateError
        It must not be added, and why.
    """
    if message.kind != "update" or message.round != number:
        raise UpdateError(f"it sent a '{message.kind}' of round {message.round} instead of its update of {number}")
    tensors = {name: tensor.array for name, tensor in message.tensors.items()}
    if tensors.keys() != expected.keys():
        raise UpdateError(f"it sent {sorted(tensors)} instead of {sorted(expected)}")
    for name, array in expected.items():
        got = tensors[name]
        if (got.shape, got.dtype) != (array.shape, array.dtype):
            raise UpdateError(f"its '{name}' are {got.dtype} {list(got.shape)}, not {array.dtype} {list(array.shape)}")
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UpdateError(f"its '{name}' are not finite")
    samples, steps, loss = (message.fields.get(n) for n in ("samples", "steps", "loss"))
    if not isinstance(samples, int) or not isinstance(steps, int) or not isinstance(loss, float):
        raise UpdateError("it does not say how many samples and steps it took, and with which loss")
    if not (samples > 0 and steps > 0):
        raise UpdateError(f"it says that it took {steps} steps on {samples} samples")
    return Update(tensors, samples, steps, loss)
