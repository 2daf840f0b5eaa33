"""The user's side of the messages: one question at a time, whichever thread asks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from ...core.errors import PeerLostError, WireError
from ...core.message import Message, Scalar
from ...core.message import Tensor as WireTensor
from ...core.session import NodeSession


class SegmentClient:
    """Asks the cloud and counts steps and micro-batches.

    Parameters
    ----------
    session : NodeSession
    """

    def __init__(self, session: NodeSession) -> None:
        self.session = session
        self.step = 0
        self.micro = 0
        self.closed = False
        self._next = 0
        # Filled by finalizers, which may run anywhere, even while this lock is held: never locked for.
        self._freed: deque[int] = deque()
        self._lock = threading.RLock()

    def ask(self, kind: str, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor] | None = None) -> Message:
        """Send a message of this step and wait for its answer.

        Raises
        ------
        PeerLostError, RunFailedError
            The server, or the half of the model there, is gone.
        """
        with self._lock:
            self.tell(kind, fields, tensors)
            return self.session.channel.receive()

    def tell(self, kind: str, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Send a message that has no answer; errors as for :meth:`ask`."""
        if self.closed:
            raise PeerLostError("this split model was closed", hint="call farshore.split again on a whole model")
        with self._lock:
            message = Message(kind, step=self.step, micro=self.micro, fields=fields, tensors=tensors or {})
            self.session.channel.send(message)

    def forward(self, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor]) -> tuple[int, Message]:
        """Go forward; returns the forward's number too."""
        with self._lock:
            self._next += 1
            number = self._next
            freed = ",".join(str(self._freed.popleft()) for _ in range(len(self._freed)))
            answer = self.ask("activation", {**fields, "id": number, "free": freed}, tensors)
            self.micro += 1
        if answer.kind != "activation":
            raise WireError(f"the cloud answered an activation with a '{answer.kind}'")
        return number, answer

    def freed(self, number: int) -> None:
        """A forward's graph is gone without a backward; the cloud hears of it with the next message."""
        self._freed.append(number)

    def commit(self, fields: Mapping[str, Scalar]) -> None:
        """Take the step in the cloud too."""
        with self._lock:
            self.tell("control", {**fields, "what": "step"})
            self.step += 1
            self.micro = 0

    def close(self) -> None:
        """End the run in good order; idempotent."""
        with self._lock:
            if not self.closed:
                try:
                    self.ask("control", {"what": "close"})
                finally:
                    self.closed = True
